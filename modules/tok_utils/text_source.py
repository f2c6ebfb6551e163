"""Reading texts where they lie: plain or packed, of any size, never written to.

A `TextSource` gives the bytes of one text by position, so that the code that cuts and the code that encodes need not
know how it is stored (`readers.py` does). A plain file is read where asked; of others, which can only be read forward,
what lies behind the last `release` is forgotten and nothing but the part in use is held in memory.

A text may be documents. Those of JSON lines, Parquet and FASTA are joined, with what `Reading` says between them, and
empty ones left out; a plain text has documents where `Reading` says what stands between them. One begins behind every
separator, several on end counting as one.
"""

import hashlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from modules.system.errors import UserError
from modules.tok_utils.readers import (
    DAMAGE,
    NAMES,
    READ_BYTES,
    ParquetReader,
    Part,
    Reading,
    decompressed,
    fasta_parts,
    is_text_name,
    json_parts,
    kind_and_compression,
    text_name,
)

PLAIN = Reading()
BLOCKS = 32  # that a fingerprint reads, evenly spread
BLOCK_BYTES = 1 << 16
SAMPLES = 8  # of a text, by which the whole is judged
SAMPLE_BYTES = 1 << 14


def find_texts(path: str | os.PathLike) -> list[Path]:
    """The texts that `path` names: itself, or those of a folder (see `readers.py` for their names), sorted by name.

    Raises UserError where there is none, where one is empty, where a text lies there twice (`a.txt` beside `a.txt.xz`),
    or FASTA lies beside others.
    """
    path = Path(path)
    if path.is_dir():
        texts = sorted(
            (entry for entry in path.iterdir() if is_text_name(entry.name) and entry.is_file()),
            key=lambda text: text.name,
        )
        if not texts:
            raise UserError(f"{path}: expected a text ({NAMES}) in this folder, found none")
    elif path.is_file():
        texts = [path]
    else:
        found = "a link to nothing" if path.is_symlink() else "what is no regular file" if path.exists() else "nothing"
        raise UserError(f"{path}: no such text; expected a file ({NAMES}) or a folder of them, found {found}")
    by_name = {}
    for text in texts:
        other = by_name.setdefault(text_name(text), text)
        if other != text:
            raise UserError(
                f"{other} and {text.name} look like the same text twice: move one of them out of the folder"
            )
        if text.stat().st_size == 0:
            raise UserError(f"{text}: the text is empty")
    kinds = {kind_and_compression(text.name)[0]: text for text in texts}
    if len(kinds) > 1 and "fasta" in kinds:
        fasta, other = kinds.pop("fasta"), next(iter(kinds.values()))
        raise UserError(
            f"{fasta} and {other.name}: expected sequences alone, or other texts alone: move one of them out"
        )
    return texts


class TextSource:
    """One text, opened for reading: `read(start, stop)` gives its bytes (decompressed, documents joined),
    `release(position)` forgets what lies before, `document_starts` tells where documents begin.

    `size` is the number of bytes of the text; None for one that is not plain until its end has been read. `is_plain`:
    the file's bytes are the text's. `has_documents`: it is divided into documents.
    """

    def __init__(self, path: Path, reading: Reading = PLAIN):
        """Raises UserError where a Parquet file has no column of texts as `reading` names it."""
        kind, compression = kind_and_compression(path.name)
        self.path = path
        self.file_bytes = path.stat().st_size
        self.is_plain = kind == "text" and not compression
        self.has_documents = reading.separator_of(kind) is not None
        self.size = self.file_bytes if self.is_plain else None
        self._separator = (reading.separator_of(kind) or "").encode("utf-8")
        self._divided_here = kind == "text"  # documents are where separators are found
        self._buffer, self._base, self._starts = bytearray(), 0, []
        if (
            kind == "fasta"
            and reading.fasta_n == "split"
            and path.name.lower().removesuffix(compression).endswith(".faa")
        ):
            raise UserError(f"{path}: fasta_n: in proteins N is an amino acid: leave it at keep")
        self._file = open(path, "rb")
        self._parquet = None
        try:
            if kind == "parquet":
                self._parquet = ParquetReader(self._file, path, reading.text_field)
                self._parts = self._parquet.parts()
            elif kind == "text":
                self._parts = _undivided(decompressed(self._file, compression))
            elif kind == "json":
                self._parts = json_parts(decompressed(self._file, compression), path, reading.text_field)
            else:
                self._parts = fasta_parts(decompressed(self._file, compression), path, reading.fasta_n)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the text, fewer where it ends before. Raises UserError for a damaged file, and for
        what is no document."""
        if self.is_plain:
            self._file.seek(start)
            return self._file.read(stop - start)
        if start < self._base:
            raise ValueError(f"position {start} was released (now at {self._base})")
        while self.size is None and self._base + len(self._buffer) < stop:
            self._read_part()
        return bytes(memoryview(self._buffer)[start - self._base : stop - self._base])

    def release(self, position: int) -> None:
        """Nothing before `position` will be read again, a separator that ends there excepted."""
        if not self.is_plain:
            keep = max(self._base, position - len(self._separator)) if self._divided_here else position
            del self._buffer[: keep - self._base]
            self._base = keep
            self._starts = [start for start in self._starts if start >= position]

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """The positions in [start, stop) at which documents begin, uint64, once the bytes up to `stop` have been read
        and while those from `start` are not released. A text that is not divided begins at 0 and nowhere else."""
        if not self._divided_here:
            return np.array([each for each in self._starts if start <= each < stop], dtype=np.uint64)
        found = [0] if start == 0 < stop else []
        if width := len(self._separator):
            first = max(0, start - width)
            window = self.read(first, stop + width)
            ends = _ends_of(self._separator, window)
            # One that another follows or overlaps begins nothing, nor does one at the end of the text.
            last = [end for end, after in pairwise([*ends, len(window) + 2 * width]) if after - end > width]
            found += [first + end for end in last if max(start, 1) <= first + end < min(stop, first + len(window))]
        return np.array(found, dtype=np.uint64)

    def documents(self) -> Iterator[bytes]:
        """The documents one by one, without what stands between them; the text itself where it is not divided. For a
        text that fits into memory, of which nothing was released."""
        end = READ_BYTES
        while self.read(end, end + 1):
            end *= 2
        text = self.read(0, end)
        starts = self.document_starts(0, len(text)).astype(np.int64).tolist()
        for start, stop in pairwise([*starts, len(text)]):
            document = text[start:stop]
            if stop < len(text) and not self._divided_here:
                document = document.removesuffix(self._separator)
            while self._divided_here and self._separator and document.endswith(self._separator):
                document = document.removesuffix(self._separator)
            if document:
                yield document

    def estimated_size(self) -> int:
        """The text's size in bytes; for one that is not plain, judged from the ratio in the part read so far
        (READ_BYTES at least)."""
        if self.size is None:
            self.read(self._base, self._base + READ_BYTES)
        if self.size is not None:
            return self.size
        share = self._parquet.share_read if self._parquet else self._file.tell() / self.file_bytes
        return int((self._base + len(self._buffer)) / max(share, 1 / self.file_bytes))

    def _read_part(self) -> None:
        """Append the next part of the text to the buffer, or learn that there is none."""
        try:
            part = next(self._parts, None)
        except DAMAGE as error:
            raise UserError(
                f"{self.path}: damaged or cut off after {self._base + len(self._buffer)} bytes of text: {error}"
            ) from error
        end = self._base + len(self._buffer)
        if part is None:
            self.size = end
        elif part.data:
            if part.starts and not self._divided_here:
                if end:
                    self._buffer += self._separator
                self._starts.append(self._base + len(self._buffer))
            self._buffer += part.data


def _undivided(stream) -> Iterator[Part]:
    while block := stream.read(READ_BYTES):
        yield Part(block, False)


def _ends_of(separator: bytes, data: bytes) -> list[int]:
    """Where separators end, those that overlap too."""
    ends, at = [], data.find(separator)
    while at >= 0:
        ends.append(at + len(separator))
        at = data.find(separator, at + 1)
    return ends


class TextInMemory:
    """Bytes that are there already, as a TextSource."""

    def __init__(self, data: bytes):
        self._data, self.size = data, len(data)

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]

    def release(self, position: int) -> None:
        pass


def raw_head(path: Path, size: int) -> bytes:
    """How a file begins, decompressed, whatever its name says is in it. UserError where it is damaged."""
    with open(path, "rb") as file:
        try:
            return decompressed(file, kind_and_compression(path.name)[1]).read(size)[:size]
        except DAMAGE as error:
            raise UserError(f"{path}: damaged or cut off after 0 bytes of text: {error}") from error


def not_utf8(path: Path, position: int, byte: int) -> UserError:
    """The error for a text that is not UTF-8 at byte `position`."""
    return UserError(
        f"{path}: not UTF-8 at byte {position} (0x{byte:02x}): convert the text, "
        'or have what is not UTF-8 replaced with --errors replace (errors="replace")'
    )


def spread_samples(path: Path, reading: Reading = PLAIN) -> list[str]:
    """Up to SAMPLES stretches of a text, spread over it (from its start, where it is not plain), without what is torn
    or not UTF-8."""
    with TextSource(path, reading) as source:
        spread = source.file_bytes if source.is_plain else SAMPLES * SAMPLE_BYTES
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
