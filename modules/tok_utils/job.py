"""What the chunks in a folder are of, and which are there.

A `manifest.json` beside the chunks says what they are of: texts, tokenizer, and, once all are there, the cuts, lengths
and checksums. What is done is known from the chunk files themselves, which carry the manifest's identity, their place
in the text, and checksums of text and ids: there is no second record that a kill could leave at odds with them.

A text counts as unchanged if its size, its fingerprint (`text_source.py`) and its time are as they were. If only the
time differs (a copy, a `touch`), the chunks that are done are compared with the text by checksum, which costs reading
that much of it.
"""

import errno
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.schema import Schema, checked
from modules.tok_utils.cuts import Piece, pieces
from modules.tok_utils.encoder import Encoded
from modules.tok_utils.pt_file import Tensor, read_pt, write_pt
from modules.tok_utils.readers import Reading, kind_and_compression, text_name
from modules.tok_utils.text_source import PLAIN, TextSource, fingerprint
from modules.tokenizer import MOST_IDS, Tokenizer

MANIFEST = "manifest.json"
FORMAT = 1
# tokens, or bytes after replacements, of a byte of text: Unicode's normal forms make at most 18 characters of one
MOST_EXPANSION = 32

Count = Annotated[int, Field(ge=0)]
Crc32 = Annotated[int, Field(ge=0, lt=1 << 32)]


class Row(Schema):
    """What the manifest says of a chunk: bytes [start, stop) of which text it is of, and what became of them."""

    text: Count
    start: Count
    stop: Annotated[int, Field(ge=1)]
    tokens: Count
    text_bytes: Count
    tokens_crc32: Crc32
    documents: Count | None = None
    documents_crc32: Crc32 | None = None

    @model_validator(mode="after")
    def _can_be_of_its_bytes(self):
        most = MOST_EXPANSION * max(0, self.stop - self.start)
        if max(self.tokens, self.text_bytes) > most:
            raise ValueError(
                f"{self.tokens:,} tokens and {self.text_bytes:,} bytes of bytes {self.start:,} to {self.stop:,}: "
                f"expected at most {most:,}"
            )
        return self


class Text(Schema):
    """A text that chunks are of."""

    name: str
    file_bytes: Count
    fingerprint: str


class Manifest(Schema):
    """A manifest.json. `chunks` is None until all are there."""

    format: Literal[1]
    texts: Annotated[list[Text], Field(min_length=1)]
    tokenizer_fingerprint: str
    chunk_bytes: Annotated[int, Field(ge=1)]
    errors: Literal["strict", "replace"]
    mtime_ns: list[int]
    vocab_size: Annotated[int, Field(ge=1, le=MOST_IDS)]
    bos_id: Count
    reading: str | None = None
    identity: str
    chunks: list[Row] | None

    @property
    def header(self) -> dict:
        """What the chunks' identity is made of."""
        said = self.model_dump(include={"format", "texts", "tokenizer_fingerprint", "chunk_bytes", "reading"})
        return {name: value for name, value in said.items() if value is not None}

    @model_validator(mode="after")
    def _is_consistent(self):
        if self.identity != identity_of(self.header):
            raise ValueError("what it says does not fit its checksum (identity)")
        if len(self.mtime_ns) != len(self.texts):
            raise ValueError(
                f"mtime_ns: expected a time for each of {len(self.texts)} texts, found {len(self.mtime_ns)}"
            )
        if self.chunks is not None:
            check_they_meet(self.texts, self.chunks)
        return self


class Contents(Schema):
    """A chunk's file: the ids of its bytes, and the tokens of it with which documents begin, where the text has any.

    Both are arrays, compared with their checksums where they are used, or say of which kind and length they are.
    """

    tokens: Any
    job: str
    text: Count
    start: Count
    stop: Annotated[int, Field(ge=1)]
    text_bytes: Count
    text_crc32: Crc32
    tokens_crc32: Crc32
    documents: Any = None
    documents_crc32: Crc32 | None = None

    @model_validator(mode="after")
    def _are_ids(self):
        kinds = (np.uint16, np.uint32), (np.uint64,)
        for name, value, dtypes in zip(("tokens", "documents"), (self.tokens, self.documents), kinds, strict=True):
            if name == "documents" and value is None and self.documents_crc32 is None:
                continue
            if not isinstance(value, (np.ndarray, Tensor)) or value.dtype not in dtypes:
                raise ValueError(
                    f"{name}: expected a row of numbers of {' or '.join(np.dtype(d).name for d in dtypes)}"
                )
        return self

    def row(self) -> Row:
        """What the manifest says of it."""
        said = self.model_dump(include=Row.model_fields.keys() - {"tokens", "documents"})
        return Row(tokens=self.tokens.size, documents=None if self.documents is None else self.documents.size, **said)


def identity_of(header: dict) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def check_they_meet(texts: list[Text], rows: list[Row]) -> None:
    """Raises ValueError unless the chunks cover each text from its first byte to its last, in order, once."""
    text, reached = 0, 0
    for number, row in enumerate(rows):
        if row.text == text + 1 and _may_end(texts[text], reached):
            text, reached = row.text, 0
        if row.text != text or row.start != reached or row.stop <= row.start:
            raise ValueError(
                f"chunk {number} is of bytes {row.start:,} to {row.stop:,} of text {row.text}, and should begin "
                f"at byte {reached:,} of text {text}"
            )
        reached = row.stop
    if text != len(texts) - 1 or not _may_end(texts[text], reached):
        raise ValueError(
            f"the chunks end at byte {reached:,} of {texts[text].name}, text {text + 1} of {len(texts)}, before "
            "the texts do"
        )


def _may_end(text: Text, position: int) -> bool:
    """Whether a text can end at a position: of one that is not plain only the text itself tells."""
    return position > 0 and (kind_and_compression(text.name) != ("text", "") or position == text.file_bytes)


class Chunk(NamedTuple):
    """One piece of one text, numbered through all texts."""

    number: int
    text: int
    piece: Piece


class Job:
    """What the chunks in a folder are of, and which are there."""

    def __init__(
        self, folder: Path, texts: list[Path], toki: Tokenizer, errors: str, chunk_bytes: int, reading: Reading = PLAIN
    ):
        """Raises UserError where the folder holds the chunks of something else."""
        self.reading = reading
        self.folder, self.texts, self.toki, self.errors, self.chunk_bytes = folder, texts, toki, errors, chunk_bytes
        self.header = {
            "format": FORMAT,
            "texts": [
                {"name": text.name, "file_bytes": text.stat().st_size, "fingerprint": fingerprint(text)}
                for text in texts
            ],
            "tokenizer_fingerprint": toki.fingerprint,
            "chunk_bytes": chunk_bytes,
        }
        if reading.identity is not None:
            self.header["reading"] = reading.identity
        self.identity = identity_of(self.header)
        self.times = [text.stat().st_mtime_ns for text in texts]
        self.manifest = read_manifest(folder)
        if self.manifest is not None:
            self._check_same(self.manifest)
        # A text as old as it was then is unchanged; of another the done chunks are compared by checksum.
        self.touched = self.manifest is not None and self.manifest.mtime_ns != self.times

    def _check_same(self, manifest: Manifest) -> None:
        advice = f"delete {self.folder} to tokenize anew"
        for name, what in (
            ("texts", "another text, or of this text before it was changed"),
            ("tokenizer_fingerprint", "another tokenizer"),
            ("chunk_bytes", f"{manifest.chunk_bytes} bytes of text each, not {self.chunk_bytes}"),
            ("reading", "this text read in another way (--text_field, --document_separator, --fasta_n)"),
        ):
            if manifest.header.get(name) != self.header.get(name):
                raise UserError(f"{self.folder} holds chunks of {what}: {advice}, or put back what they were made from")
        if manifest.errors == "replace" and self.errors == "strict":
            raise UserError(f"{self.folder} holds chunks made with errors=replace: go on so, or {advice}")

    def path(self, number: int) -> Path:
        return self.folder / f"chunk_{number:06d}.pt"

    def finished(self) -> bool:
        """Whether all chunks are there, without reading the text again."""
        rows = self.manifest.chunks if self.manifest and not self.touched else None
        return rows is not None and all(self.path(number).exists() for number in range(len(rows)))

    def chunks(self) -> Iterator[tuple[Chunk, TextSource]]:
        """All chunks in order, each with its text opened at its place."""
        number = 0
        for index, text in enumerate(self.texts):
            with TextSource(text, self.reading) as source:
                for piece in pieces(source, self.chunk_bytes, self.toki):
                    yield Chunk(number, index, piece), source
                    number += 1

    def is_done(self, chunk: Chunk, source: TextSource) -> bool:
        """Whether the chunk's file is there, whole and of this piece. Raises UserError where it is of other text than
        there is now."""
        done = self.read(chunk.number)
        if (
            done is None
            or (done.text, done.start, done.stop) != (chunk.text, chunk.piece.start, chunk.piece.stop)
            or not self._fits(done)
            or (done.documents is not None) != source.has_documents
        ):
            return False
        if self.touched and done.text_crc32 != zlib.crc32(source.read(chunk.piece.start, chunk.piece.stop)):
            raise UserError(
                f"{self.texts[chunk.text]} has changed since {self.path(chunk.number)} was made of it: "
                f"delete {self.folder} to tokenize anew, or put the text back"
            )
        return True

    def _fits(self, done: Contents) -> bool:
        """Whether its ids can stand for its bytes: what is replaced by U+FFFD may grow threefold."""
        size = done.stop - done.start
        return done.text_bytes == size if self.errors == "strict" else done.text_bytes <= 3 * size

    def read(self, number: int) -> Contents | None:
        """The contents of a chunk's file, ids not yet read from the disk; None where there is no whole file of this
        job."""
        try:
            done = read_chunk(self.path(number))
        except (Damaged, FileNotFoundError):  # cut off by other hands than ours, or gone by now: encoded again
            return None
        return done if done.job == self.identity else None

    def write(self, chunk: Chunk, encoded: Encoded) -> None:
        """Write a chunk's file, whole or not at all."""
        contents = {
            "tokens": encoded.ids,
            "job": self.identity,
            "text": chunk.text,
            "start": chunk.piece.start,
            "stop": chunk.piece.stop,
            "text_bytes": encoded.text_bytes,
            "text_crc32": encoded.text_crc32,
            "tokens_crc32": encoded.ids_crc32,
        }
        if encoded.documents is not None:
            contents |= {"documents": encoded.documents, "documents_crc32": zlib.crc32(encoded.documents.data)}
        buffer = io.BytesIO()
        write_pt(buffer, contents)
        try:
            with replacing(self.path(chunk.number)) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise UserError(
                f"{self.path(chunk.number)} cannot be written: "
                f"{os.strerror(error.errno) if error.errno else error}. "
                "What is done is kept: start again to go on from here"
            ) from error

    def begin(self) -> None:
        """Write the manifest of a job that has no finished one. Texts that were touched count as unchanged only when
        all is compared."""
        self._write_manifest(self.manifest.mtime_ns if self.manifest else self.times, None)

    def finish(self, chunks: list[Chunk]) -> None:
        """Write the manifest with the list of all chunks: cuts, lengths, checksums. Raises UserError where a text has
        changed meanwhile."""
        for text, time_then in zip(self.texts, self.times, strict=True):
            if text.stat().st_mtime_ns != time_then:
                raise UserError(f"{text} has changed while it was tokenized: start again")
        rows = [self._row(chunk) for chunk in chunks]
        try:
            check_they_meet([Text(**text) for text in self.header["texts"]], rows)
        except ValueError as error:
            raise UserError(f"{self.folder}: {error}; delete it to tokenize anew") from None
        self._write_manifest(self.times, [row.model_dump(exclude_none=True) for row in rows])

    def _write_manifest(self, times: list[int], rows: list[dict] | None) -> None:
        manifest = self.header | {
            "errors": self.errors,
            "mtime_ns": times,
            "vocab_size": self.toki.vocab_size,
            "bos_id": self.toki.bos_id,
            "identity": self.identity,
            "chunks": rows,
        }
        with replacing(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest), encoding="utf-8")

    def _row(self, chunk: Chunk) -> Row:
        done = self.read(chunk.number)
        if done is None or not self._fits(done):
            raise UserError(f"{self.path(chunk.number)} is missing or damaged: start again to make it anew")
        return done.row()


AGAIN = "start tokenize_folder (tokenize_to_h5.py) again to make it anew"


class Damaged(UserError):
    """A chunk's file that is not whole."""


def read_chunk(path: Path, *arrays: str) -> Contents:
    """What a chunk's file holds; of its arrays those named.

    Raises Damaged where it is not whole, and OSError or MemoryError where it cannot be read for another reason.
    """
    with open(path, "rb"):  # a missing file, or one that may not be read, is not damaged
        pass
    try:
        return checked(Contents, read_pt(path, arrays), str(path))
    except MemoryError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # zipfile seeks before the start of a file that is cut (EINVAL)
            raise
        raise damaged(path) from error
    except Exception as error:  # zipfile and pickle raise one or another for whatever they dislike
        raise damaged(path) from error


def damaged(path: Path) -> Damaged:
    return Damaged(f"{path} is damaged: delete it and {AGAIN}")


def chunks_folder_of(folder: str | os.PathLike, texts: list[Path]) -> Path:
    """Where the chunks of these texts go: `<text>_tokens` beside a single text, `<folder>_tokens` in the folder of
    several."""
    name = text_name(texts[0]) if len(texts) == 1 else Path(folder).resolve().name
    return texts[0].parent / f"{name}_tokens"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a chunks folder, None where there is none. Raises UserError where it is damaged."""
    path = folder / MANIFEST
    advice = f"delete {folder} to tokenize anew"
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from error
    if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
        raise UserError(f"{folder} holds chunks of another version: {advice}")
    return checked(Manifest, found, f"{path} is damaged", advice)
