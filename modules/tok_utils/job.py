"""What the chunks in a folder are of, and which are there.

A `manifest.json` beside the chunks says what they are of: texts, tokenizer, and, once all are there, the cuts, lengths and checksums. What is done
is known from the chunk files themselves, which carry the manifest's identity, their place in the text, and checksums of text and
ids: there is no second record that a kill could leave at odds with them.

A text counts as unchanged if its size, its fingerprint (`text_source.py`) and its time are as they were. If only the time
differs (a copy, a `touch`), the chunks that are done are compared with the text by checksum, which costs reading that much of it.
"""
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modules.errors import UserError
from modules.files import replacing, sweep
from modules.tok_utils.cuts import Piece, pieces
from modules.tok_utils.text_source import TextSource, fingerprint, text_name
from modules.tok_utils.worker import Encoded
from modules.tokenizer import Tokenizer

MANIFEST = "manifest.json"


class Chunk(NamedTuple):
    """One piece of one text, numbered through all texts."""
    number: int
    text: int
    piece: Piece


class Job:
    """What the chunks in a folder are of, and which are there."""

    def __init__(self, folder: Path, texts: list[Path], toki: Tokenizer, errors: str, chunk_bytes: int):
        """Raises UserError where the folder holds the chunks of something else."""
        self.folder, self.texts, self.toki, self.errors, self.chunk_bytes = folder, texts, toki, errors, chunk_bytes
        self.header = {
            "format": 1,
            "texts": [{"name": text.name, "file_bytes": text.stat().st_size, "fingerprint": fingerprint(text)} for text in texts],
            "tokenizer_fingerprint": toki.fingerprint,
            "chunk_bytes": chunk_bytes,
        }
        self.identity = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()
        self.times = [text.stat().st_mtime_ns for text in texts]
        self.manifest = read_manifest(folder)
        if self.manifest is not None:
            self._check_same(self.manifest)
        # A text as old as it was then is unchanged; of another the done chunks are compared by checksum.
        self.touched = self.manifest is not None and self.manifest["mtime_ns"] != self.times

    def _check_same(self, manifest: dict) -> None:
        advice = f"delete {self.folder} to tokenize anew"
        for name, what in (("texts", "another text, or of this text before it was changed"), ("tokenizer_fingerprint", "another tokenizer"),
                           ("chunk_bytes", f"{manifest.get('chunk_bytes')} bytes of text each, not {self.chunk_bytes}"), ("format", "another version")):
            if manifest.get(name) != self.header[name]:
                raise UserError(f"{self.folder} holds chunks of {what}: {advice}, or put back what they were made from")
        if manifest["errors"] == "replace" and self.errors == "strict":
            raise UserError(f"{self.folder} holds chunks made with errors=replace: go on so, or {advice}")

    def path(self, number: int) -> Path:
        return self.folder / f"chunk_{number:06d}.pt"

    def finished(self) -> bool:
        """Whether all chunks are there, without reading the text again."""
        rows = self.manifest["chunks"] if self.manifest and not self.touched else None
        return rows is not None and all(self.path(number).exists() for number in range(len(rows)))

    def chunks(self) -> Iterator[tuple[Chunk, TextSource]]:
        """All chunks in order, each with its text opened at its place."""
        number = 0
        for index, text in enumerate(self.texts):
            with TextSource(text) as source:
                for piece in pieces(source, self.chunk_bytes, self.toki):
                    yield Chunk(number, index, piece), source
                    number += 1

    def is_done(self, chunk: Chunk, source: TextSource) -> bool:
        """Whether the chunk's file is there and whole. Raises UserError where it is of other text than there is now."""
        done = self.read(chunk.number)
        if done is None:
            return False
        if self.touched and done["text_crc32"] != zlib.crc32(source.read(chunk.piece.start, chunk.piece.stop)):
            raise UserError(f"{self.texts[chunk.text]} has changed since {self.path(chunk.number)} was made of it: "
                            f"delete {self.folder} to tokenize anew, or put the text back")
        return True

    def read(self, number: int) -> dict | None:
        """The contents of a chunk's file, ids not yet read from the disk; None where there is no whole file of this job."""
        if not self.path(number).exists():
            return None  # before torch is imported: a second in which no worker would have work yet
        import torch
        try:
            done = torch.load(self.path(number), mmap=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError):  # not there, or cut off by other hands than ours: encoded again
            return None
        return done if isinstance(done, dict) and done.get("job") == self.identity else None

    def write(self, chunk: Chunk, encoded: Encoded) -> None:
        """Write a chunk's file, whole or not at all."""
        import torch
        buffer = io.BytesIO()  # torch.save to a path hides why it failed
        contents = {"tokens": torch.from_numpy(encoded.ids), "job": self.identity, "text": chunk.text, "start": chunk.piece.start,
                    "stop": chunk.piece.stop, "text_bytes": encoded.text_bytes, "text_crc32": encoded.text_crc32, "tokens_crc32": encoded.ids_crc32}
        torch.save(contents, buffer)
        try:
            with replacing(self.path(chunk.number)) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise UserError(f"{self.path(chunk.number)} cannot be written: {os.strerror(error.errno)}. "
                            "What is done is kept: start again to go on from here") from error

    def begin(self) -> None:
        """Write the manifest of a job that has no finished one. Texts that were touched count as unchanged only when all is compared."""
        self._write_manifest(self.manifest["mtime_ns"] if self.manifest else self.times, None)

    def finish(self, chunks: list[Chunk]) -> None:
        """Write the manifest with the list of all chunks: cuts, lengths, checksums. Raises UserError where a text has changed meanwhile."""
        for text, time_then in zip(self.texts, self.times, strict=True):
            if text.stat().st_mtime_ns != time_then:
                raise UserError(f"{text} has changed while it was tokenized: start again")
        self._write_manifest(self.times, [self._row(chunk) for chunk in chunks])

    def _write_manifest(self, times: list[int], rows: list[dict] | None) -> None:
        manifest = self.header | {"errors": self.errors, "mtime_ns": times, "vocab_size": self.toki.vocab_size, "bos_id": self.toki.bos_id,
                                  "identity": self.identity, "chunks": rows}
        with replacing(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest), encoding="utf-8")

    def _row(self, chunk: Chunk) -> dict:
        done = self.read(chunk.number)
        if done is None:
            raise UserError(f"{self.path(chunk.number)} is missing or damaged: start again to make it anew")
        return {"tokens": len(done["tokens"])} | {key: done[key] for key in ("text", "start", "stop", "text_bytes", "tokens_crc32")}


def chunks_folder_of(folder: str | os.PathLike, texts: list[Path]) -> Path:
    """Where the chunks of these texts go: `<text>_tokens` beside a single text, `<folder>_tokens` in the folder of several."""
    name = text_name(texts[0]) if len(texts) == 1 else Path(folder).resolve().name
    return texts[0].parent / f"{name}_tokens"


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete what killed processes left half-written: the temporary files of `modules.files.replacing`."""
    sweep(folder)


def read_manifest(folder: Path) -> dict | None:
    """The manifest in a chunks folder, None where there is none. Raises UserError where it cannot be read."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder} to tokenize anew") from error
