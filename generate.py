"""Let trained models write: a forward model what comes next, a backward model what came before.

    python generate.py forward.state -t tokenizers/english "The file is"
    python generate.py backward.state -t tokenizers/english " of the file."
    python generate.py forward.state backward.state -t tokenizers/english " is closed"

The text is always shown as it is read. With a forward and a backward state, or a model of both orders, a sentence in
the middle grows outward. Without a text the models begin one. An argument is a state where it ends in .state or names
a file; the text is the other one. A token is often a blank and a word, so a text that begins inside a sentence should
begin with the blank before its word: " is closed". See docs/using.md.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modules.system.errors import UserError, one_line_errors

if TYPE_CHECKING:
    import torch

    from modules.models.generate import Sampling
    from modules.tokenizer import Tokenizer
    from modules.usage.growing import Writer


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, add_model_arguments, integer, number_above_zero, seed

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "given", nargs="+", metavar="STATE [STATE] [TEXT]", help="one or two .state files, and the text to go on with"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--tokens", type=integer(1, 10**6), default=100, help="to write in each direction (default %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=integer(1, 10_000),
        default=1,
        help="texts that are made up at the same time; several are printed once they are whole (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=number_above_zero(1000, "where all tokens are as likely", or_zero=True),
        default=1.0,
        help="below 1 likely tokens become likelier; 0 takes the likeliest (default %(default)s)",
    )
    parser.add_argument("--top_k", type=integer(1, 10**7), help="draw only from the so many likeliest tokens")
    parser.add_argument(
        "--top_p", type=number_above_zero(1, "a probability"), help="draw only from the likeliest of this probability"
    )
    parser.add_argument("--seed", type=seed, help="the same seed gives the same text (default: another each time)")
    parser.add_argument(
        "--direction", choices=("forward", "backward"), help="write in this one only, where the models could in both"
    )
    parser.add_argument(
        "--interactive", action="store_true", help="go on with one line of standard input after another"
    )
    return parser.parse_intermixed_args()


@one_line_errors
def main() -> None:
    arguments = parse_arguments()
    states, text = states_and_text(arguments.given)
    if arguments.interactive and text:
        raise UserError("--interactive: expected no text beside the states: texts are read from standard input")

    import torch  # seconds of imports, in which Ctrl-C is one line as well

    from modules.models.generate import Sampling
    from modules.training.devices import pick_device
    from modules.usage.growing import writers_of
    from modules.usage.opened import runs_of, tokenizer_of

    device = pick_device(arguments.device)
    runs = runs_of(states)
    toki, bos_id = tokenizer_of(runs, arguments.tokenizer_path, arguments.data)
    writers = writers_of(runs, bos_id, device, arguments.direction)
    generator = torch.Generator(device)
    generator.seed() if arguments.seed is None else generator.manual_seed(arguments.seed)
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    for each in lines_of_input() if arguments.interactive else [text]:
        if not write_on(writers, toki, each, arguments.samples, arguments.tokens, sampling, generator):
            break


def states_and_text(given: Sequence[str]) -> tuple[list[str], str]:
    """Which arguments are states, and which is the text: "" where there is none."""
    first, *others = given
    texts = [each for each in others if not each.endswith(".state") and not os.path.isfile(each)]
    if len(texts) > 1:
        raise UserError(f"expected states and one text, found {len(texts)} that are no files: put quotes round a text")
    from modules.cli import path

    try:
        states = [path(each) for each in given if each is first or each not in texts]
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from None
    return states, "".join(texts)


def lines_of_input() -> Iterator[str]:
    """The lines of standard input; after a sign, on a terminal."""
    if sys.stdin is None:
        raise UserError("--interactive: expected lines on standard input, found it closed")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # what is no text is then told of
    while True:
        try:
            line = input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "")
        except EOFError:
            return
        yield line


def write_on(
    writers: "Sequence[Writer]",
    toki: "Tokenizer",
    text: str,
    samples: int,
    n_tokens: int,
    sampling: "Sampling",
    generator: "torch.Generator",
) -> bool:
    """Go on with a text, and show it; whether anybody reads what is shown."""
    import torch

    from modules.kernels.precision import fp32_products
    from modules.system.console import bar, tell, write
    from modules.usage.growing import grown
    from modules.usage.live import Live

    live = Live(*(any(writer.at_front == front for writer in writers) for front in (True, False)))
    steps = grown(writers, toki.encode(text), samples, n_tokens, sampling, generator)
    with torch.inference_mode(), fp32_products(tf32=False):  # a token's operations begin a quarter sooner in that mode
        if samples > 1:
            total = 1 + n_tokens * len(writers)
            *_, texts = bar(steps, total=total, desc="writing", unit="token", delay=2, leave=False)
            for number, ids in enumerate(texts, 1):
                tell(f"--- {number} of {samples}")
                tell(toki.backend.decode(ids.tolist(), skip_special_tokens=False))
            return write("")
        so_far = ""
        for (ids,) in steps:
            so_far = toki.backend.decode(ids.tolist(), skip_special_tokens=False)
            if not live.show(so_far):
                return False
        return live.end(so_far)


if __name__ == "__main__":
    main()
