"""Write a text file of English prose from the docstrings of the installed Python packages: a corpus without a
download."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, megabytes, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.docstrings import write_docstring_corpus

    parser = Parser(description=__doc__)
    parser.add_argument("txt_path", type=path, help="path of the .txt file to write")
    parser.add_argument(
        "--max_mb", type=megabytes, default=20.0, help="stop at about this many MB (10^6 bytes; default %(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=path,
        action="append",
        dest="folders",
        help="collect from the Python files under this folder instead (may be given more than once)",
    )
    options = parser.parse_args()
    written = write_docstring_corpus(options.txt_path, options.max_mb, options.folders)
    tell(f"{options.txt_path}: {written / 1e6:.1f} MB of English prose")


if __name__ == "__main__":
    main()
