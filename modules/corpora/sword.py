"""Books for SWORD, a reader of Bibles and of what is like them: their modules, and the markup of these, OSIS."""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping

from modules.corpora.pages import page_blocks

CHAPTER = re.compile(rb"<chapter\b[^>]*>")
BESIDE = re.compile(rb"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)
TOUCHING_WORDS = re.compile(rb"(</w>|</transChange>)(?=<w\b|<transChange\b)")


def books(data: Mapping[str, bytes], largest: int) -> Iterator[tuple[str, bytes]]:
    """The books of SWORD's compressed modules, each with a path, from the modules' files.

    Beside the data (.bzz) lie an index of books (.bzs), 12 bytes each: where it begins, how long it is, how long
    unpacked; and one of verses (.bzv), 10 bytes each: the book, where the verse begins in it, how long it is. What is
    damaged is left out, and of a book that unpacks to more than `largest` bytes the rest.
    """
    for path in sorted(path for path in data if path.endswith(".bzz")):
        packed, of_books, of_verses = data[path], data.get(f"{path[:-1]}s", b""), data.get(f"{path[:-1]}v", b"")
        verses: dict[int, dict[int, int]] = {}  # of each book: where each begins, how long it is
        for book, start, size in struct.iter_unpack("<IIH", of_verses[: len(of_verses) // 10 * 10]):
            verses.setdefault(book, {})[start] = size
        for book, (begin, size, _) in enumerate(struct.iter_unpack("<III", of_books[: len(of_books) // 12 * 12])):
            try:
                osis = zlib.decompressobj().decompress(packed[begin : begin + size], largest)
            except zlib.error:
                continue
            lines = [osis[start : start + length] for start, length in sorted(verses.get(book, {}).items())]
            yield f"{path}/{book:02}", b"\n".join(lines)


def osis_blocks(data: bytes) -> list[str]:
    """The chapters of a book in OSIS, without titles and notes, each in one line."""
    chapters = [TOUCHING_WORDS.sub(rb"\1 ", BESIDE.sub(b"", chapter)) for chapter in CHAPTER.split(data)]
    lines = [" ".join(" ".join(page_blocks(chapter)).split()) for chapter in chapters]
    return [line for line in lines if line]
