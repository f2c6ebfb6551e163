"""Write a text file of prose from Debian's manual pages in one language: a corpus in French, German, Spanish and many
more."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, megabytes, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.manpages import write_manpage_corpus

    parser = Parser(description=__doc__)
    parser.add_argument(
        "language", help="as the pages' folder is called: fr, de, es, pt_BR, ...; en for the English ones"
    )
    parser.add_argument("txt_path", type=path, help="path of the .txt file to write")
    parser.add_argument(
        "--folder", type=path, default="/usr/share/man", help="where the pages are (default %(default)s)"
    )
    parser.add_argument(
        "--max_mb", type=megabytes, default=20.0, help="stop at about this many MB (10^6 bytes; default %(default)s)"
    )
    options = parser.parse_args()
    written = write_manpage_corpus(options.txt_path, options.language, options.folder, options.max_mb)
    tell(f"{options.txt_path}: {written / 1e6:.1f} MB of prose")


if __name__ == "__main__":
    main()
