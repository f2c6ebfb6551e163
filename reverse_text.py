"""Write a text reversed, as a text of its own: the paper's control, to be tokenized afresh with tokenize_to_h5.py."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.reverse import reverse_text

    parser = Parser(description=__doc__)
    parser.add_argument(
        "txt_path", type=path, help="text to reverse: .txt, .txt.gz, .txt.xz or .txt.zst; it is only read"
    )
    parser.add_argument("out_path", type=path, help="path of the reversed .txt")
    parser.add_argument(
        "--graphemes",
        action="store_true",
        help="reverse by grapheme cluster, so that accents stay on their letters and emoji stay whole (default: by character)",
    )
    args = parser.parse_args()
    tell(reverse_text(args.txt_path, args.out_path, graphemes=args.graphemes))


if __name__ == "__main__":
    main()
