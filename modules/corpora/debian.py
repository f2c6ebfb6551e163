r"""Prose from any Debian package: HTML, help pages (Mallard, DocBook), manual pages, books for SWORD, or plain text.

Debian carries tens of megabytes of long prose and of parallel translations with clear licences: LibreOffice's help in
35 languages, the documentation of Linux, Perl and Python, essays. A package is named, and downloaded by apt-get; or it
is a `.deb` that is there; or a folder into which one was unpacked. Of a package in many languages `NAME=GLOB` takes the
files of one: `debian-handbook=*/es-ES/*`. Of a `.deb` nothing is unpacked to the disk: its
files are read from the archive as a stream, ordinary files only, so that no link or odd path in it can reach anything.

Many packages have one text in several forms. Taken is the first of these that there is, in the order above. A
paragraph is what stands in one block of HTML, between two commands of a manual page, or between blank lines; as with
docstrings and manual pages it stays where it reads as sentences, in any script that has capital letters.
"""

import hashlib
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from modules.corpora import manpages
from modules.corpora.docstrings import is_prose
from modules.corpora.documents import Document, Kept, text_path, write_documents
from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.processes import available_cores

LARGEST_FILE = 1 << 25  # bytes; what unpacks to more is cut: a damaged or hostile file may unpack to any size
FORMS = {  # of a text, the best one first: the paths of files that have it
    "html": re.compile(r".*\.x?html?(?:\.gz)?", re.IGNORECASE),
    "help pages": re.compile(r"(?:.*/)?share/help/.*\.(?:page|xml|docbook)"),
    "manual pages": re.compile(r"(?:.*/)?man\d/[^/]+"),
    "SWORD": re.compile(r"(?:.*/)?sword/modules/texts/ztext/.*\.bz[svz]"),
    "text": re.compile(r"(?:.*/)?(?:[^/]+\.(?:txt|md|rst)|README[^/.]*)(?:\.gz)?", re.IGNORECASE),
}
COPYRIGHT = re.compile(r"(?:.*/)?usr/share/doc/[^/]+/copyright")
CHAPTER = re.compile(rb"<chapter\b[^>]*>")  # these three in OSIS
BESIDE = re.compile(rb"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)
TOUCHING_WORDS = re.compile(rb"(</w>|</transChange>)(?=<w\b|<transChange\b)")
LICENCE = re.compile(r"^License: *(\S.*)$", re.MULTILINE)
COMMON_LICENCE = re.compile(r"/usr/share/common-licenses/([\w.+-]*\w)")
CHARSET = re.compile(rb"charset=[\"']?([\w-]+)", re.IGNORECASE)
# Neither is running text: what a page shows on its edges, and what it quotes.
SKIPPED = {"script", "style", "head", "nav", "header", "footer", "aside", "button", "select", "pre", "svg", "math"}
SKIPPED |= set("info screen listing programlisting synopsis literallayout indexterm media mediaobject".split())
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
INLINE = set(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strike strong"
    " sub sup time tt u var wbr"
    # of Mallard and DocBook
    " app cmd file gui guiseq key keyseq sys application citetitle command computeroutput emphasis envar filename"
    " firstterm foreignphrase glossterm guibutton guiicon guilabel guimenu guimenuitem guisubmenu keycap keycombo"
    " literal menuchoice option parameter phrase productname prompt quote replaceable systemitem trademark ulink"
    " userinput varname xref"
    # of OSIS, as SWORD has it
    " divinename hi name seg transchange w".split()
)


class File(NamedTuple):
    path: str  # inside its package
    data: bytes


def write_debian_corpus(
    path: str | Path,
    packages: list[str],
    downloads: str | Path | None = None,
    max_mb: float = 100.0,
    without: str | Path | None = None,
) -> Kept:
    """Write the prose of Debian packages as JSON lines to `path`, and what they are to `<text>.source.json`.

    packages: names, which apt-get downloads to the folder `downloads` (by default `debs`, beside `path`), `.deb` files,
    or folders that hold an unpacked one; each may end in `=GLOB`, a pattern (of fnmatch) of the files' paths in it.
    without: a text collected before, of which no paragraph is to come again: what
    a translation has left in English. Ends after the document with which `max_mb` (10^6 bytes) is reached. UserError
    where a package cannot be had or read, or where there is no prose.
    """
    path = text_path(path)
    folder = Path(downloads) if downloads else path.parent / "debs"
    documents, sources = [], []
    with ProcessPoolExecutor(available_cores()) as pool:
        for name in packages:
            source, files = read_package(*found_package(name, folder))
            package = source["package"]
            blocks = bar(pool.map(file_blocks, files, chunksize=16), total=len(files), unit=" files", desc=package)
            sources.append(source)
            documents += [Document(f"{package}/{file.path}", found) for file, found in zip(files, blocks, strict=True)]
    if_none = f"no prose in the {len(documents)} files of {', '.join(packages)}"
    return write_documents(path, documents, max_mb, sources, if_none, without)


# Packages
# ---------------------------------------------------------------------------------------------------------------


def found_package(name: str, downloads: Path) -> tuple[Path, str]:
    """The `.deb` or folder that `name` is, or the `.deb` of the package of that name, downloaded if it is not yet; and
    the GLOB behind the name, or "*"."""
    if Path(name).exists():
        return Path(name), "*"
    name, glob = name.rsplit("=", 1) if "=" in name else (name, "")
    if Path(name).exists():
        return Path(name), glob or "*"
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
        raise UserError(f"{name}: expected the name of a Debian package, a .deb file or a folder, found none of these")
    there = sorted(downloads.glob(f"{name}_*.deb"))
    if not there:
        if not shutil.which("apt-get"):
            raise UserError(
                f"{name}: expected a .deb file or a folder, as there is no apt-get here to download it with"
            )
        downloads.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["apt-get", "download", "-q", name], cwd=downloads, capture_output=True, text=True)
        there = sorted(downloads.glob(f"{name}_*.deb"))
        if done.returncode or not there:
            why = next((line for line in done.stderr.splitlines() if line.startswith("E:")), "apt-get gave no reason")
            raise UserError(f"{name}: apt-get could not download it ({why}); `apt-get update` may help")
    return there[-1], glob or "*"


def read_package(path: Path, glob: str) -> tuple[dict, list[File]]:
    """What is known of a `.deb`, or a folder with an unpacked one, and its files of text that match `glob`, in the form
    taken."""
    by_form: dict[str, list[File]] = {form: [] for form in FORMS}
    licence = "in the copyright file of a package that this one needs"  # where its own is a link to that
    for file in folder_files(path) if path.is_dir() else archive_files(path):
        if COPYRIGHT.fullmatch(file.path):
            licence = licence_of(file.data.decode("utf-8", "replace"))
        form = next((form for form, paths in FORMS.items() if paths.fullmatch(file.path)), None)
        if form and fnmatchcase(file.path, glob):
            by_form[form].append(file)
    form = next((form for form, files in by_form.items() if files), None)
    if form is None:
        where = "" if glob == "*" else f" under {glob}"
        raise UserError(f"{path}: expected a package with {', '.join(FORMS)}{where}, found none")
    only = {} if glob == "*" else {"files": glob}
    taken = list(books(by_form[form])) if form == "SWORD" else sorted(by_form[form])
    return {**about(path), **only, "licence": licence, "form": form}, taken


def books(files: list[File]) -> Iterator[File]:
    """The books, in OSIS, of SWORD's compressed modules. Beside the data (.bzz) lie an index of books (.bzs), 12 bytes
    each: where it begins, how long it is, how long unpacked; and one of verses (.bzv), 10 bytes each: the book, where
    the verse begins in it, how long it is. What is damaged is left out."""
    data = dict(files)
    for path in sorted(path for path in data if path.endswith(".bzz")):
        packed, of_books, of_verses = data[path], data.get(f"{path[:-1]}s", b""), data.get(f"{path[:-1]}v", b"")
        verses: dict[int, dict[int, int]] = {}  # of each book: where each begins, how long it is
        for book, start, size in struct.iter_unpack("<IIH", of_verses[: len(of_verses) // 10 * 10]):
            verses.setdefault(book, {})[start] = size
        for book, (begin, size, _) in enumerate(struct.iter_unpack("<III", of_books[: len(of_books) // 12 * 12])):
            try:
                osis = zlib.decompressobj().decompress(packed[begin : begin + size], LARGEST_FILE)
            except zlib.error:
                continue
            lines = [osis[start : start + length] for start, length in sorted(verses.get(book, {}).items())]
            yield File(f"{path}/{book:02}", b"\n".join(lines))


def about(path: Path) -> dict:
    """Name and version of a package, and the address of those who wrote it."""
    if path.is_dir():
        return {"package": path.name, "version": "unpacked"}
    said = output_of(path, "--field", path, "Package", "Version", "Homepage").decode("utf-8", "replace")
    fields = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "package": fields["Package"],
        "version": fields["Version"],
        "address": fields.get("Homepage", "not said"),
        "sha256": digest,
    }


def licence_of(copyright_file: str) -> str:
    """The names of the licences in a package's copyright file."""
    names = LICENCE.findall(copyright_file) or COMMON_LICENCE.findall(copyright_file)
    return ", ".join(dict.fromkeys(name.strip() for name in names)) or "see its copyright file"


def wanted(path: str) -> bool:
    return bool(COPYRIGHT.fullmatch(path)) or any(paths.fullmatch(path) for paths in FORMS.values())


def archive_files(deb: Path) -> Iterator[File]:
    """The files of text in a `.deb`, and its copyright file, without unpacking anything to the disk."""
    stream = subprocess.Popen([dpkg_deb(), "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=stream.stdout, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name) and (opened := archive.extractfile(member)):
                    yield File(name, unpacked(opened.read(LARGEST_FILE)))
    except tarfile.TarError:
        raise UserError(f"{deb}: expected a Debian package, found {output_error(stream)}") from None
    finally:
        stream.kill()
        stream.communicate()


def folder_files(folder: Path) -> Iterator[File]:
    """The same of a folder into which a package was unpacked; links are not followed."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if wanted(name) and file.is_file() and not file.is_symlink():
            with open(file, "rb") as opened:
                yield File(name, unpacked(opened.read(LARGEST_FILE)))


def unpacked(data: bytes) -> bytes:
    """Without gzip's compression; of damaged data, and of what unpacks beyond all measure, the beginning."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, LARGEST_FILE)
    except zlib.error:
        return b""


def output_of(deb: Path, *arguments: str | Path) -> bytes:
    done = subprocess.run([dpkg_deb(), *map(str, arguments)], capture_output=True)
    if done.returncode:
        raise UserError(f"{deb}: expected a Debian package, found {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def output_error(stream: subprocess.Popen) -> str:
    said = stream.stderr.read().decode(errors="replace").strip() if stream.stderr else ""
    return said or "a damaged one"


def dpkg_deb() -> str:
    command = shutil.which("dpkg-deb")
    if command is None:
        raise UserError("reading a .deb needs dpkg-deb (on other systems than Debian: install dpkg); a folder does not")
    return command


# Prose
# ---------------------------------------------------------------------------------------------------------------


def file_blocks(file: File) -> list[str]:
    """The paragraphs of a file that read as sentences, each in one line."""
    form = next((form for form, paths in FORMS.items() if paths.fullmatch(file.path)), "SWORD")
    if form in ("manual pages", "text"):
        text = file.data.decode("utf-8", "replace")
        return manpages.prose_blocks(text) if form == "manual pages" else text_blocks(text)
    return osis_blocks(file.data) if form == "SWORD" else html_blocks(file.data)


def osis_blocks(data: bytes) -> list[str]:
    """The chapters of a book in OSIS, without titles and notes, each in one line."""
    chapters = [TOUCHING_WORDS.sub(rb"\1 ", BESIDE.sub(b"", chapter)) for chapter in CHAPTER.split(data)]
    lines = [" ".join(" ".join(page_blocks(chapter)).split()) for chapter in chapters]
    return [line for line in lines if line]


def html_blocks(data: bytes) -> list[str]:
    return prose(page_blocks(data))


def page_blocks(data: bytes) -> list[str]:
    """The text of each block of a page of HTML or XML, in one line."""
    declared = CHARSET.search(data[:4096])
    try:
        text = data.decode(declared[1].decode() if declared else "utf-8")
    except (LookupError, UnicodeDecodeError):
        text = data.decode("utf-8", "replace")
    page = Page()
    page.feed(text)
    page.close()
    page.end_block()
    return page.blocks


def text_blocks(text: str) -> list[str]:
    """The paragraphs of plain text: what stands between blank lines, if it is not indented by four or more."""
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return prose([" ".join(block.split()) for block in blocks if not re.match(r"\n*(?: {4}|\t)", block)])


def prose(blocks: list[str]) -> list[str]:
    return [block for block in blocks if is_prose(block, manpages.SENTENCES, manpages.NOT_PROSE)]


class Page(HTMLParser):
    """The text of a page of HTML, a block for each paragraph, cell or item."""

    def __init__(self):
        super().__init__()
        self.blocks: list[str] = []
        self.block: list[str] = []
        self.skipped, self.depth = "", 0  # the element that is left out, and how many of its name are open in it

    def end_block(self) -> None:
        self.blocks.append(" ".join("".join(self.block).split()))
        self.block = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.depth:
            self.depth += tag == self.skipped
        elif tag not in VOID and (tag in SKIPPED or any(name == "hidden" for name, _ in attrs)):
            self.skipped, self.depth = tag, 1
        elif tag == "br":
            self.block.append(" ")
        if not self.depth and tag not in INLINE and tag not in VOID:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if self.depth:
            self.depth -= tag == self.skipped
        elif tag not in INLINE and tag not in VOID:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.block.append(data)
