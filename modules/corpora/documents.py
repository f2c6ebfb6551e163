"""A collected text of many documents: what comes twice is left out, and a file beside the text says where it is from.

A text to measure on needs more than sentences. Its held-out end has to be text that the training has not seen, so
repeated paragraphs are kept once, and documents that nearly repeat an earlier one are left out: two are near-duplicates
where the sets of their five-word sequences have a Jaccard similarity of half or more, as MinHash estimates it (rensa).
Its documents have to be known, for intervals that are clustered by them: it is written as JSON lines, a document a
line. And who reads a result wants to know what the text is: `<text>.source.json` says it.

Documents come in the order of a hash of the end of their names: shuffled, so that the held-out end is text of the same
kind as the rest, always alike, and alike in the languages of a manual, whose pages are called the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from modules.corpora.docstrings import is_new
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.tok_utils.readers import text_name

WORDS = 5  # of a sequence; four in a row are often a phrase that everybody uses
PERMUTATIONS = 128  # of MinHash: the similarity is estimated to within 0.04 (one standard deviation at a half)
NEAR = 0.5
HOW = (
    f"repeated paragraphs are kept once; a document whose set of {WORDS}-word sequences has a Jaccard similarity of "
    f"{NEAR} or more with that of an earlier one is left out (MinHash, {PERMUTATIONS} permutations)"
)


class Document(NamedTuple):
    name: str  # its path, and what it is in
    blocks: list[str]  # paragraphs, or a whole file of code


class Kept(NamedTuple):
    documents: int
    size: int  # bytes of text
    repeated_paragraphs: int
    near_duplicates: int  # documents
    empty: int  # documents, of which nothing was text, or nothing new

    def told(self) -> str:
        return (
            f"{self.size / 1e6:.1f} MB in {self.documents:,} documents; left out: {self.repeated_paragraphs:,} "
            f"repeated paragraphs, {self.near_duplicates:,} near-duplicate documents, {self.empty:,} documents without "
            "text"
        )


def write_documents(
    path: str | Path,
    documents: Iterable[Document],
    max_mb: float,
    sources: list[dict],
    if_none: str,
    without: str | Path | None = None,
) -> Kept:
    """Write `documents`, without what comes twice, as JSON lines to `path`, and `sources` to `<text>.source.json`.

    without: a text that was collected before, whose paragraphs are left out as if they came twice. Ends after the
    document with which `max_mb` (10^6 bytes of text) is reached. The documents are held in memory. UserError(if_none)
    where nothing is text, and where `path` is not called .jsonl or rensa is not installed.
    """
    path = text_path(path)
    is_near = near_duplicates()
    seen: set[bytes] = set()
    for text in documents_of(without) if without else ():
        for block in text.split("\n"):
            is_new(block, seen)
    kept = size = repeated = similar = empty = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as out:
        for document in sorted(documents, key=place):
            new = [block for block in document.blocks if is_new(block, seen)]
            repeated += len(document.blocks) - len(new)
            text = "\n".join(new)
            if not text:
                empty += 1
            elif is_near(document.name, word_sequences(text)):
                similar += 1
            else:
                out.write(json.dumps({"text": text, "name": document.name}, ensure_ascii=False) + "\n")
                kept, size = kept + 1, size + len(text.encode(errors="replace"))
                if size >= int(max_mb * 1e6):
                    break
        if not kept:
            raise UserError(if_none)
    found = Kept(kept, size, repeated, similar, empty)
    about = {"text": path.name, **found._asdict(), "how_duplicates_were_found": HOW, "sources": sources}
    with replacing(path.with_name(text_name(path) + ".source.json")) as temporary:
        temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def text_path(path: str | Path) -> Path:
    """The path of a text to collect. UserError where it is not called .jsonl."""
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: expected a name that ends in .jsonl, as a document is written on each line")
    return path


def documents_of(path: str | Path) -> Iterator[str]:
    """The texts of a collected text's documents."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}: expected a text that was collected, found no document in line {number}"
                ) from None


def near_duplicates() -> Callable[[str, set[str]], bool]:
    """A function of a document's name and word sequences: whether it is near one that it was asked of before."""
    try:
        from rensa import RMinHash, RMinHashDeduplicator  # pyrefly: ignore[missing-module-attribute]
    except ImportError:
        raise UserError("finding near-duplicates needs rensa: pip install rensa") from None
    found = RMinHashDeduplicator(threshold=NEAR, num_perm=PERMUTATIONS, use_lsh=True, num_bands=32, seed=0)

    def is_near(name: str, sequences: set[str]) -> bool:
        minhash = RMinHash(num_perm=PERMUTATIONS, seed=0)
        minhash.update(sequences)
        return not found.add(name, minhash)

    return is_near


def place(document: Document) -> tuple[bytes, str]:
    """Where in the text a document stands."""
    end = "/".join(PurePosixPath(document.name).parts[-2:])
    return hashlib.sha256(end.encode(errors="replace")).digest(), document.name


def word_sequences(text: str) -> set[str]:
    """All sequences of WORDS words; of a shorter text, the text."""
    words = text.split()
    return {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
