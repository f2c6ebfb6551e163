"""Melodies as a text to measure on: tunes in ABC notation, as collections of folk music are written down.

A tune is a document: its notes and bars as they stand, without the header (title, key, metre, who wrote it down),
comments and annotations. Tunes that come twice, and near-duplicates, are left out.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from modules.corpora.documents import Document, Kept, text_path, write_documents
from modules.system.console import reason
from modules.system.errors import UserError

LARGEST_FILE = 1 << 24  # bytes
TUNE = re.compile(r"^X:", re.MULTILINE)  # each begins with its number
FIELD = re.compile(r"[A-Za-z+]:(?!\|)")  # of a header, or inside a tune; "A:|" is a note and a repeat
SAID = re.compile(r'"[^"\n]*"|%.*')  # chord names and other annotations; comments
LICENCE = re.compile(r"licen[cs]e|copying", re.IGNORECASE)


def write_tunes(path: str | Path, collections: list[str], max_mb: float = 100.0) -> Kept:
    """Write the tunes of `collections` as JSON lines to `path`, and what they are to `<text>.source.json`.

    collections: folders, zip files or wheels with `.abc` files. Ends after the tune with which `max_mb` (10^6 bytes) is
    reached. UserError where one cannot be read, or where there are no tunes.
    """
    path = text_path(path)
    documents, sources = [], []
    for collection in collections:
        licences, folders = [], set()
        for name, data in files(Path(collection)):
            if name.endswith(".abc"):
                folders |= set(PurePosixPath(name).parents)
                melodies = tunes(data.decode("utf-8", errors="replace"))
                documents += [Document(f"{name}/{number}", [melody]) for number, melody in enumerate(melodies, 1)]
            else:
                licences.append(name)
        theirs = ", ".join(name for name in licences if PurePosixPath(name).parent in folders)
        sources.append({"package": Path(collection).name, "licence": f"see {theirs} in it" if theirs else "not said"})
    return write_documents(
        path, documents, max_mb, sources, f"no tunes in {', '.join(collections)}: expected .abc files"
    )


def tunes(text: str) -> list[str]:
    """The melodies of an ABC file."""
    found = []
    for tune in TUNE.split(text)[1:]:
        lines = (SAID.sub("", line).strip() for line in tune.splitlines()[1:] if not FIELD.match(line))
        found.append("\n".join(filter(None, lines)))
    return found


def files(collection: Path) -> Iterator[tuple[str, bytes]]:
    """The `.abc` files of a folder, zip file or wheel, and those that tell of its licence: paths, contents."""

    def wanted(name: str, size: int) -> bool:
        return size <= LARGEST_FILE and (name.endswith(".abc") or bool(LICENCE.search(Path(name).name)))

    try:
        if collection.is_dir():
            for file in sorted(collection.rglob("*")):
                if file.is_file() and wanted(file.name, file.stat().st_size):
                    yield file.relative_to(collection).as_posix(), file.read_bytes()
            return
        with zipfile.ZipFile(collection) as archive:
            for about in sorted(archive.infolist(), key=lambda each: each.filename):
                if wanted(about.filename, about.file_size):
                    yield about.filename, archive.read(about)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # damaged, or with a password
        raise UserError(
            f"{collection}: expected a folder, a zip file or a wheel with .abc files: {reason(error)}"
        ) from None
