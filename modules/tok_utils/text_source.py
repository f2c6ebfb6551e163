"""Reading texts where they lie: plain or compressed, of any size, never written to.

A `TextSource` gives the bytes of one text by position, so that the code that cuts and the code that encodes need not
know how it is stored. A plain file is read where asked; a compressed one can only be read forward, so what
lies behind the last `release` is forgotten and nothing but the part in use is held in memory.
"""

import gzip
import hashlib
import lzma
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from modules.system.errors import UserError

# One of them ends a text's name, in letters of either size.
SUFFIXES = (".txt", ".txt.gz", ".txt.xz", ".txt.zst")
READ_BYTES = 1 << 20
ZSTD_INPUT = 512  # compressed bytes at a time: 4 can stand for 128 KiB, and memory is bounded
BLOCKS = 32  # that a fingerprint reads, evenly spread
BLOCK_BYTES = 1 << 16
SAMPLES = 8  # of a text, by which the whole is judged
SAMPLE_BYTES = 1 << 14


def find_texts(path: str | os.PathLike) -> list[Path]:
    """The texts that `path` names: itself, or the .txt, .txt.gz, .txt.xz and .txt.zst files of a folder, sorted by
    name.

    Raises UserError where there is none, where one is empty, or where a text lies there twice (`a.txt` beside
    `a.txt.xz`).
    """
    path = Path(path)
    if path.is_dir():
        texts = sorted(
            (entry for entry in path.iterdir() if is_text_name(entry.name) and entry.is_file()),
            key=lambda text: text.name,
        )
        if not texts:
            raise UserError(f"{path}: expected a text ({', '.join(SUFFIXES)}) in this folder, found none")
    elif path.is_file():
        texts = [path]
    else:
        found = "a link to nothing" if path.is_symlink() else "what is no regular file" if path.exists() else "nothing"
        raise UserError(
            f"{path}: no such text; expected a file ({', '.join(SUFFIXES)}) or a folder of them, found {found}"
        )
    by_name = {}
    for text in texts:
        other = by_name.setdefault(text_name(text), text)
        if other != text:
            raise UserError(
                f"{other} and {text.name} look like the same text twice: move one of them out of the folder"
            )
        if text.stat().st_size == 0:
            raise UserError(f"{text}: the text is empty")
    return texts


def is_text_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def text_name(path: Path) -> str:
    """The name without .txt and what follows: `english` for `english.txt.xz`."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


class TextSource:
    """One text, opened for reading: `read(start, stop)` gives its bytes (decompressed), `release(position)` forgets
    what lies before.

    `size` is the number of bytes of the text; None for a compressed one until its end has been read. `is_plain`: not
    compressed. `has_documents`: it is divided into documents.
    """

    has_documents = False

    def __init__(self, path: Path):
        self.path = path
        self.file_bytes = path.stat().st_size
        self._file = open(path, "rb")  # noqa: SIM115 (closed in __exit__)
        self._stream = _decompressed(self._file, path.suffix.lower())
        self.is_plain = self._stream is None
        self.size = self.file_bytes if self.is_plain else None
        self._buffer, self._base = bytearray(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the text, fewer where it ends before. Raises UserError for a damaged compressed
        file."""
        if self._stream is None:
            self._file.seek(start)
            return self._file.read(stop - start)
        if start < self._base:
            raise ValueError(f"position {start} was released (now at {self._base})")
        while self.size is None and self._base + len(self._buffer) < stop:
            block = self._read_block()
            self._buffer += block
            if not block:
                self.size = self._base + len(self._buffer)
        return bytes(memoryview(self._buffer)[start - self._base : stop - self._base])

    def release(self, position: int) -> None:
        """Nothing before `position` will be read again."""
        if self._stream is not None:
            del self._buffer[: position - self._base]
            self._base = position

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """The positions in [start, stop), which have been read, at which documents begin, uint64."""
        return np.empty(0, dtype=np.uint64)

    def estimated_size(self) -> int:
        """The text's size in bytes; for a compressed text, judged from the ratio in the part read so far (READ_BYTES at
        least)."""
        if self.size is None:
            self.read(self._base, self._base + READ_BYTES)
        if self.size is not None:
            return self.size
        return int((self._base + len(self._buffer)) * self.file_bytes / max(self._file.tell(), 1))

    def _read_block(self) -> bytes:
        try:
            return self._stream.read(READ_BYTES)
        except (EOFError, zstandard.ZstdError, lzma.LZMAError, gzip.BadGzipFile, gzip.zlib.error) as error:
            raise UserError(
                f"{self.path}: damaged or cut off after {self._base + len(self._buffer)} bytes of text: {error}"
            ) from error


class TextInMemory:
    """Bytes that are there already, as a TextSource."""

    def __init__(self, data: bytes):
        self._data, self.size = data, len(data)

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]

    def release(self, position: int) -> None:
        pass


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO | None:
    """A stream of the text in a compressed file, all members and frames of it; None for a plain file."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if suffix == ".xz":
        return lzma.LZMAFile(file)
    if suffix == ".zst":
        return _ZstdStream(file)
    return None


class _ZstdStream:
    """Reads zstd frames one after another. The library's own stream reader ends without a word where a file is cut
    off."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = None

    def read(self, size: int) -> bytes:
        """At least `size` bytes (up to ZSTD_INPUT's worth more), less only at the end. Raises EOFError where the file
        is cut off."""
        blocks, length = [], 0
        while length < size and (data := self._file.read(ZSTD_INPUT)):
            while data:
                self._frame = self._frame or self._new_frame()
                blocks.append(self._frame.decompress(data))
                length += len(blocks[-1])
                data = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
        if length < size and self._frame is not None:
            raise EOFError("the last zstd frame is not complete")
        return b"".join(blocks)


def not_utf8(path: Path, position: int, byte: int) -> UserError:
    """The error for a text that is not UTF-8 at byte `position`."""
    return UserError(
        f"{path}: not UTF-8 at byte {position} (0x{byte:02x}): convert the text, "
        'or have what is not UTF-8 replaced with --errors replace (errors="replace")'
    )


def spread_samples(path: Path) -> list[str]:
    """Up to SAMPLES stretches of a text, spread over it (from its start, where it is compressed), without what is torn
    or not UTF-8."""
    with TextSource(path) as source:
        spread = source.size if source.is_plain else SAMPLES * SAMPLE_BYTES
        starts = sorted({max(0, spread - SAMPLE_BYTES) * sample // (SAMPLES - 1) for sample in range(SAMPLES)})
        return [source.read(start, start + SAMPLE_BYTES).decode("utf-8", "ignore") for start in starts]


def fingerprint(path: Path) -> str:
    """Hex digest of a file's size and of BLOCKS blocks evenly spread over it: quick for 100 GB, and sees all but small
    edits.

    Small edits are seen by the checksums that every chunk keeps of its text.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for block in range(BLOCKS):
            file.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
