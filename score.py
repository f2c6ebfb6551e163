"""What trained models say of any text: nats per token, bits per byte and perplexity, in each model's order.

    python score.py forward.state backward.state -t tokenizers/english text.txt
    cat text.txt | python score.py forward.state -t tokenizers/english -
    python score.py *.state -t tokenizers/english texts.jsonl --by_document documents.csv --tokens tokens.csv
    python score.py *.state -t tokenizers/english --choices questions.jsonl

Of a text longer than the context each token is read where it is most central in a window, with the same window forward
and backward; documents (of JSON lines, Parquet, FASTA, or between separators) are read one by one. What is measured,
and how choices are ranked: docs/using.md.
"""

import argparse

from modules.system.console import tell
from modules.system.errors import one_line_errors


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, add_model_arguments, add_reading_arguments, path

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "given",
        nargs="+",
        type=path,
        metavar="STATE ... FILE",
        help=".state files, and then a text of any kind that tokenize_to_h5.py takes, or - for standard input",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--tokens", type=path, metavar="CSV", help="write every token with its loss in each model to this file"
    )
    parser.add_argument(
        "--by_document",
        type=path,
        metavar="CSV",
        help="write every document with its losses to this file, sorted by the arrow (backward minus forward), and "
        "show the first and last",
    )
    parser.add_argument(
        "--choices",
        type=path,
        metavar="JSONL",
        help='in place of FILE: questions, {"context": ..., "choices": [...], "gold": 0} a line, whose choices are '
        "ranked by loss",
    )
    parser.add_argument(
        "--ranked", type=path, metavar="CSV", help="with --choices: write the losses and ranks of all to this file"
    )
    add_reading_arguments(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.choices and (arguments.tokens or arguments.by_document):
        parser.error("--choices: expected no --tokens and --by_document with it; --ranked has the losses of choices")
    if arguments.ranked and not arguments.choices:
        parser.error("--ranked goes with --choices")
    if not arguments.choices and len(arguments.given) < 2:
        parser.error("expected states and then a text (- for standard input), or --choices")
    return arguments


@one_line_errors
def main() -> None:
    arguments = parse_arguments()

    from modules.cli import reading_of  # and seconds of imports, in which Ctrl-C is one line as well
    from modules.training.devices import keep_freed_memory, pick_device
    from modules.usage.choices import score_choices
    from modules.usage.opened import runs_of, tokenizer_of
    from modules.usage.scoring import score_text

    device = pick_device(arguments.device)
    keep_freed_memory(device)
    states = arguments.given if arguments.choices else arguments.given[:-1]
    runs = runs_of(states)
    toki, bos_id = tokenizer_of(runs, arguments.tokenizer_path, arguments.data)
    if arguments.choices:
        tell(score_choices(runs, toki, bos_id, device, arguments.choices, arguments.ranked))
        return
    score_text(
        runs, toki, bos_id, device, arguments.given[-1], reading_of(arguments), arguments.tokens, arguments.by_document
    )


if __name__ == "__main__":
    main()
