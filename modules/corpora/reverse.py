r"""A text reversed, for the control experiment that tokenizes the reversed text afresh: `reverse_text`.

By character (a Unicode code point), as in the paper, or by grapheme cluster (what a reader takes for one character:
`regex`'s `\X`), so that a combining accent stays on its letter, an emoji made of several code points stays one, and
\r\n stays \r\n.

Reversal keeps the number of bytes. So the text is read forward, a block at a time (compressed texts can be read in no
other way), and each reversed block goes to its place counted from the end of the output: memory is that of a block, and
the text is never changed. A compressed text is read twice, first for its size.
"""

import os
from pathlib import Path

import regex

from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.tok_utils.inspection import check_is_text
from modules.tok_utils.text_source import TextSource, find_texts, not_utf8

BLOCK_BYTES = 1 << 22
GRAPHEME = regex.compile(r"\X")


def reverse_text(
    txt_path: str | os.PathLike, out_path: str | os.PathLike, graphemes: bool = False, block_bytes: int = BLOCK_BYTES
) -> Path:
    """Write the text `txt_path` (.txt, .txt.gz, .txt.xz, .txt.zst) reversed to `out_path`, an uncompressed text.

    By character, or by grapheme cluster if `graphemes`. A cluster longer than `block_bytes` is cut.

    Returns the path of the new text. Raises UserError where the text is missing, empty or not UTF-8.
    """
    txt_path, out_path = Path(txt_path), Path(out_path)
    if txt_path.is_dir():
        raise UserError(f"{txt_path}: expected one text, found a folder")
    find_texts(txt_path)
    check_is_text(txt_path)
    if out_path.suffix.lower() in (".gz", ".xz", ".zst") or out_path.is_dir():
        raise UserError(f"{out_path}: expected the name of a plain text for the output, such as reversed.txt")
    if out_path.exists() and out_path.samefile(txt_path):
        raise UserError(f"{out_path}: the output would replace the text itself; give it another name")
    size = _size(txt_path)
    with (
        replacing(out_path) as temporary,
        TextSource(txt_path) as source,
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


def _size(path: Path) -> int:
    """Bytes of the text."""
    with TextSource(path) as source:
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
