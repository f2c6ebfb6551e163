"""Write a text of prose, as JSON lines, from Debian packages: documentation in English, LibreOffice's help in 35
languages, essays. What the packages are, and their licences, is written beside it."""

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, megabytes, path  # imports in which Ctrl-C is one line as well
    from modules.corpora.debian import write_debian_corpus

    parser = Parser(description=__doc__)
    parser.add_argument(
        "packages",
        nargs="+",
        type=path,
        metavar="PACKAGE[=GLOB]",
        help="names of packages, which apt-get downloads; or .deb files; or folders with an unpacked one; of a package"
        " in many languages those files whose path in it matches GLOB: debian-handbook=*/es-ES/*",
    )
    parser.add_argument("txt_path", type=path, help="path of the .jsonl file to write")
    parser.add_argument("--downloads", type=path, help="folder for the packages (default: debs, beside the text)")
    parser.add_argument(
        "--without",
        type=path,
        metavar="JSONL",
        help="leave out the paragraphs of this text, which was collected before: what a translation left in English",
    )
    parser.add_argument(
        "--max_mb", type=megabytes, default=100.0, help="stop at about this many MB (10^6 bytes; default %(default)s)"
    )
    options = parser.parse_args()
    kept = write_debian_corpus(options.txt_path, options.packages, options.downloads, options.max_mb, options.without)
    tell(f"{options.txt_path}: {kept.told()}")


if __name__ == "__main__":
    main()
