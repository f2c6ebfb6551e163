"""Write a text of source code, as JSON lines: Python's standard library, or the files under any folder."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, megabytes, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.code import write_code_corpus

    parser = Parser(description=__doc__)
    parser.add_argument("txt_path", type=path, help="path of the .jsonl file to write")
    parser.add_argument(
        "--folder",
        type=path,
        action="append",
        dest="folders",
        help="collect the files under this folder instead (may be given more than once)",
    )
    parser.add_argument("--pattern", default="*.py", help="names of the files (default %(default)s)")
    parser.add_argument(
        "--max_mb", type=megabytes, default=100.0, help="stop at about this many MB (10^6 bytes; default %(default)s)"
    )
    options = parser.parse_args()
    kept = write_code_corpus(options.txt_path, options.folders, options.pattern, options.max_mb)
    tell(f"{options.txt_path}: {kept.told()}")


if __name__ == "__main__":
    main()
