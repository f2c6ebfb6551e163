"""Source code as a text to measure on: the files of Python's standard library, which is on every machine.

A file is a document, taken as it is, with its comments. Files that come twice, and near-duplicates, are left out.
"""

import platform
import sysconfig
from pathlib import Path

from modules.corpora.documents import Document, Kept, text_path, write_documents
from modules.system.console import bar

NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}
LARGEST_FILE = 1 << 20  # bytes; larger ones are tables of data


def write_code_corpus(
    path: str | Path, folders: list[str] | None = None, pattern: str = "*.py", max_mb: float = 100.0
) -> Kept:
    """Write the files under `folders` whose names fit `pattern` as JSON lines to `path`, a file a document, and what
    they are to `<text>.source.json`.

    folders: by default that of Python's standard library, without the packages that were installed into it. Ends after
    the file with which `max_mb` (10^6 bytes) is reached. UserError where there are no such files.
    """
    path = text_path(path)
    roots = [Path(folder) for folder in folders or [sysconfig.get_paths()["stdlib"]]]
    documents = []
    for root in roots:
        for file in bar(sorted(root.rglob(pattern)), unit=" files", desc="source code"):
            inside = file.relative_to(root)
            if NOT_OURS.isdisjoint(inside.parts) and file.is_file() and (text := source_text(file)):
                documents.append(Document(f"{root.name}/{inside.as_posix()}", [text]))
    sources = [{"folder": str(root)} for root in roots]
    if not folders:
        sources = [{"package": "Python's standard library", "version": platform.python_version(), "licence": "PSF-2.0"}]
    if_none = f"no source code in {', '.join(map(str, roots))}: expected files called {pattern}"
    return write_documents(path, documents, max_mb, sources, if_none)


def source_text(file: Path) -> str:
    """A file of code; "" where it is none: too large, not UTF-8, or not readable."""
    try:
        return file.read_text(encoding="utf-8").strip() if file.stat().st_size <= LARGEST_FILE else ""
    except (UnicodeDecodeError, OSError):
        return ""
