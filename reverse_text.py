"""Write a text reversed, as a text of its own: the paper's control, to be tokenized afresh with tokenize_to_h5.py."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import (
        Parser,
        add_reading_arguments,
        path,
        reading_of,
    )  # imports in which Ctrl-C is one line as well
    from modules.corpora.reverse import reverse_text

    parser = Parser(description=__doc__)
    parser.add_argument(
        "txt_path", type=path, help="text to reverse, of any kind that tokenize_to_h5.py takes; it is only read"
    )
    parser.add_argument(
        "out_path", type=path, help="path of the reversed .txt; or .jsonl, for a text of documents: a line each"
    )
    parser.add_argument(
        "--graphemes",
        action="store_true",
        help="reverse by grapheme cluster, so that accents stay on their letters and emoji stay whole "
        "(default: by character)",
    )
    add_reading_arguments(parser)
    args = parser.parse_args()
    tell(reverse_text(args.txt_path, args.out_path, graphemes=args.graphemes, reading=reading_of(args)))


if __name__ == "__main__":
    main()
