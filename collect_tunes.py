"""Write a text of melodies, as JSON lines: the tunes in ABC notation of folders, zip files or wheels.

`pip download music21 --no-deps` brings a wheel with 13,000 of them.
"""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, megabytes, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.tunes import write_tunes

    parser = Parser(description=__doc__)
    parser.add_argument("collections", nargs="+", type=path, help="folder, zip file or wheel that holds .abc files")
    parser.add_argument("txt_path", type=path, help="path of the .jsonl file to write")
    parser.add_argument(
        "--max_mb", type=megabytes, default=100.0, help="stop at about this many MB (10^6 bytes; default %(default)s)"
    )
    options = parser.parse_args()
    kept = write_tunes(options.txt_path, options.collections, options.max_mb)
    tell(f"{options.txt_path}: {kept.told()}")


if __name__ == "__main__":
    main()
