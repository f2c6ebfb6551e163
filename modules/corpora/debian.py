r"""Prose from any Debian package: HTML, help pages (Mallard, DocBook), manual pages, books for SWORD, or plain text.

Debian carries tens of megabytes of long prose and of parallel translations with clear licences: LibreOffice's help in
35 languages, the documentation of Linux, Perl and Python, essays. A package is named, and downloaded by apt-get; or it
is a `.deb` that is there; or a folder into which one was unpacked. Of a package in many languages `NAME=GLOB` takes the
files of one: `debian-handbook=*/es-ES/*`. Of a `.deb` nothing is unpacked to the disk: its files are read from the
archive as a stream, ordinary files only, so that no link or odd path in it can reach anything.

Many packages have one text in several forms. Taken is the first of these that there is, in the order above.
"""

import hashlib
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from modules.corpora import manpages
from modules.corpora.documents import Document, Kept, text_path, write_documents
from modules.corpora.pages import html_blocks, text_blocks
from modules.corpora.sword import books, osis_blocks
from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.processes import available_cores

LARGEST_FILE = 1 << 25  # bytes; what unpacks to more is cut: a damaged or hostile file may unpack to any size
FORMS = {  # of a text, the best one first: the paths of files that have it
    "html": re.compile(r".*\.x?html?(?:\.gz)?", re.IGNORECASE),
    "help pages": re.compile(r"(?:.*/)?share/help/.*\.(?:page|xml|docbook)"),
    "manual pages": re.compile(r"(?:.*/)?man\d/[^/]+"),
    "SWORD": re.compile(r"(?:.*/)?sword/modules/texts/ztext/.*\.bz[svz](?:/\d+)?"),  # and books in it
    "text": re.compile(r"(?:.*/)?(?:[^/]+\.(?:txt|md|rst)|README[^/.]*)(?:\.gz)?", re.IGNORECASE),
}
COPYRIGHT = re.compile(r"(?:.*/)?usr/share/doc/[^/]+/copyright")
LICENCE = re.compile(r"^License: *(\S.*)$", re.MULTILINE)
COMMON_LICENCE = re.compile(r"/usr/share/common-licenses/([\w.+-]*\w)")


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
    without: a text collected before, of which no paragraph is to come again: what a translation has left in English.
    Ends after the document with which `max_mb` (10^6 bytes) is reached. UserError where a package cannot be had or
    read, or where there is no prose.
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
    for file in folder_files(path, glob) if path.is_dir() else archive_files(path, glob):
        form = form_of(file.path)
        if form:
            by_form[form].append(file)
        else:  # its copyright file
            licence = licence_of(file.data.decode("utf-8", "replace"))
    form = next((form for form, files in by_form.items() if files), None)
    if form is None:
        where = "" if glob == "*" else f" under {glob}"
        raise UserError(
            f"{path}: expected a package with HTML, help pages, manual pages, books for SWORD or plain text{where}, "
            "found none"
        )
    only = {} if glob == "*" else {"files": glob}
    taken = (
        [File(*book) for book in books(dict(by_form[form]), LARGEST_FILE)] if form == "SWORD" else sorted(by_form[form])
    )
    return {**about(path), **only, "licence": licence, "form": form}, taken


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


def form_of(path: str) -> str | None:
    """Which of FORMS the file of that path in a package has; None where it is no text."""
    return next((form for form, paths in FORMS.items() if paths.fullmatch(path)), None)


def wanted(path: str, glob: str) -> bool:
    return bool(COPYRIGHT.fullmatch(path) or (form_of(path) and fnmatchcase(path, glob)))


def archive_files(deb: Path, glob: str) -> Iterator[File]:
    """The files of text in a `.deb` that match `glob`, and its copyright file, without unpacking anything to the
    disk."""
    stream = subprocess.Popen([dpkg_deb(), "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=stream.stdout, mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name, glob) and (opened := archive.extractfile(member)):
                    yield File(name, unpacked(opened.read(LARGEST_FILE)))
    except tarfile.TarError:
        raise UserError(f"{deb}: expected a Debian package, found {output_error(stream)}") from None
    finally:
        stream.kill()
        stream.communicate()


def folder_files(folder: Path, glob: str) -> Iterator[File]:
    """The same of a folder into which a package was unpacked; links are not followed."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if wanted(name, glob) and file.is_file() and not file.is_symlink():
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


def file_blocks(file: File) -> list[str]:
    """The paragraphs of a file that read as sentences, each in one line."""
    form = form_of(file.path)
    if form in ("manual pages", "text"):
        text = file.data.decode("utf-8", "replace")
        return manpages.prose_blocks(text) if form == "manual pages" else text_blocks(text)
    return osis_blocks(file.data) if form == "SWORD" else html_blocks(file.data)
