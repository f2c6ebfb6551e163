r"""A text reversed, for the control experiment that tokenizes the reversed text afresh: `reverse_text`.

By character (a Unicode code point), as in the paper, or by grapheme cluster (what a reader takes for one character:
`regex`'s `\X`), so that a combining accent stays on its letter, an emoji made of several code points stays one, and
\r\n stays \r\n.

A text that is documents (JSON lines, Parquet, FASTA) is reversed as it is tokenized, joined. What stands between
documents then tells where they begin as well as it did before; where the documents may hold the like of it, write JSON
lines, a document each: reversed in order and content.

Reversal keeps the number of bytes. So the text is read forward, a block at a time (compressed texts can be read in no
other way), and each reversed block goes to its place counted from the end of the output: memory is that of a block, and
the text is never changed. What is not plain is read twice, first for its size.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import regex

from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.tok_utils.inspection import check_is_text
from modules.tok_utils.readers import Reading, kind_and_compression
from modules.tok_utils.text_source import PLAIN, TextSource, find_texts, not_utf8

BLOCK_BYTES = 1 << 22
GRAPHEME = regex.compile(r"\X")


def reverse_text(
    txt_path: str | os.PathLike,
    out_path: str | os.PathLike,
    graphemes: bool = False,
    block_bytes: int = BLOCK_BYTES,
    reading: Reading = PLAIN,
) -> Path:
    """Write the text `txt_path`, read as `reading` says, reversed to `out_path`, an uncompressed text; a document a
    line where that is a .jsonl and the text is documents.

    By character, or by grapheme cluster if `graphemes`. A cluster longer than `block_bytes` is cut. A document that
    becomes a line is held in memory.

    Returns the path of the new text. Raises UserError where the text is missing, empty or not UTF-8, and for a .jsonl
    of a text that is not divided.
    """
    txt_path, out_path = Path(txt_path), Path(out_path)
    if txt_path.is_dir():
        raise UserError(f"{txt_path}: expected one text, found a folder")
    find_texts(txt_path)
    check_is_text(txt_path, reading)
    kind, compression = kind_and_compression(out_path.name)
    if kind not in ("text", "json") or compression or out_path.is_dir():
        raise UserError(
            f"{out_path}: expected the name of a plain text for the output, such as reversed.txt, or of JSON lines"
        )
    if out_path.exists() and out_path.samefile(txt_path):
        raise UserError(f"{out_path}: the output would replace the text itself; give it another name")
    if kind == "json":
        return _reverse_documents(txt_path, out_path, graphemes, reading)
    size = _size(txt_path, reading)
    with (
        replacing(out_path) as temporary,
        TextSource(txt_path, reading) as source,
        open(temporary, "wb") as out,
        bar(desc=f"reverse {txt_path.name}", total=size, unit="B", unit_scale=True) as progress,
    ):
        out.truncate(size)
        start = 0
        while start < size:
            text = _read_characters(source, start, size, block_bytes)
            if graphemes:
                clusters = GRAPHEME.findall(text)
                if len(clusters) > 1 and start + block_bytes < size:
                    clusters.pop()  # its end may lie in the next block; what ends those before stands here
                text = "".join(reversed(clusters))
            else:
                text = text[::-1]
            data = text.encode("utf-8")
            out.seek(size - start - len(data))
            out.write(data)
            start += len(data)
            source.release(start)
            progress.update(len(data))
    return out_path


def _reverse_documents(txt_path: Path, out_path: Path, graphemes: bool, reading: Reading) -> Path:
    """`reverse_text` to JSON lines: each line goes to its place counted from the end."""

    def lines() -> Iterator[bytes]:
        for document in documents(txt_path, reading):
            turned = "".join(reversed(GRAPHEME.findall(document))) if graphemes else document[::-1]
            yield json.dumps({"text": turned}, ensure_ascii=False).encode("utf-8") + b"\n"

    with replacing(out_path) as temporary, open(temporary, "wb") as out:
        at = sum(map(len, lines()))
        for line in bar(lines(), desc=f"reverse {txt_path.name}", unit=" documents"):
            at -= len(line)
            out.seek(at)
            out.write(line)
    return out_path


def documents(path: Path, reading: Reading) -> Iterator[str]:
    """The documents of a text, one after another. UserError where it is not divided, or not UTF-8."""
    with TextSource(path, reading) as source:
        if not source.has_documents:
            raise UserError(f"{path}: expected documents, found a text that nothing divides; give --document_separator")
        separator = (reading.separator_of(kind_and_compression(path.name)[0]) or "").encode("utf-8")
        start, reached = 0, 0
        while source.read(reached, reached + 1):
            reached += len(source.read(reached, reached + BLOCK_BYTES))
            starts = [at for at in source.document_starts(start, reached).tolist() if at > start]
            for stop in starts:
                yield _document(source, start, stop - len(separator))
                start = stop
            source.release(start)
        yield _document(source, start, reached)


def _document(source: TextSource, start: int, stop: int) -> str:
    data = source.read(start, stop)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(source.path, start + error.start, data[error.start]) from None


def _size(path: Path, reading: Reading) -> int:
    """Bytes of the text."""
    with TextSource(path, reading) as source:
        position = 0
        while source.size is None:
            position += len(source.read(position, position + BLOCK_BYTES))
            source.release(position)
        return source.size


def _read_characters(source: TextSource, start: int, size: int, block_bytes: int) -> str:
    """The text from `start`, some `block_bytes` of it, whole characters only. Raises UserError where it is not
    UTF-8."""
    data = source.read(start, start + block_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        torn = error.reason == "unexpected end of data" and start + len(data) < size and error.start > 0
        if not torn:
            raise not_utf8(source.path, start + error.start, data[error.start]) from None
        return data[: error.start].decode("utf-8")
