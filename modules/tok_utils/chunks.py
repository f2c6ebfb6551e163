"""Text to chunks of ids: `tokenize_folder`, on all cores, in bounded memory, resumable at any moment.

The texts are cut into pieces of CHUNK_BYTES (`cuts.py`); each piece becomes one file `chunk_000123.pt` in `<text>_tokens/` beside the text,
written whole or not at all. A `manifest.json` there says what the chunks are of: texts, tokenizer, and, once all
are there, the cuts. What is done is known from the chunk files themselves, which carry the manifest's identity, their place in the
text and checksums of text and ids: there is no second record that a kill could leave at odds with them.

One process reads and cuts, `num_workers` child processes encode, threads of the first write what they return; reading, encoding and writing thus
overlap, with two pieces a worker in flight. Pieces are 4 MB: 0.2 s of work for a worker, and at most some
150 MB of its memory. Under torchrun process r of n takes chunks r, r + n, r + 2n ...; files in the shared folder are all they
share, so the processes need no connection, and process 0 does the part of any that fell silent.
"""
import collections
import concurrent.futures
import hashlib
import io
import json
import os
import queue
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modules.errors import UserError
from modules.files import replacing
from modules.tok_utils.cuts import Piece, pieces
from modules.tok_utils.disk import check_space
from modules.tok_utils.encoder import Encoder, why_not_fast
from modules.tok_utils.progress import Progress, say
from modules.tok_utils.text_source import TextSource, find_texts, fingerprint, not_utf8, text_name
from modules.tok_utils.worker import Encoded, NotUtf8, Worker
from modules.tokenizer import Tokenizer, get_tokenizer

CHUNK_BYTES = 4 << 20
MANIFEST = "manifest.json"
SILENCE_S = 120.0  # after so long without a new chunk from the other processes, process 0 takes theirs over


class Chunk(NamedTuple):
    """One piece of one text, numbered through all texts."""
    number: int
    text: int
    piece: Piece


class Process(NamedTuple):
    """Which of how many processes this is; torchrun says so in the environment."""
    rank: int
    world_size: int
    local_world_size: int


def this_process() -> Process:
    return Process(*(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1))))


def tokenize_folder(folder: str | os.PathLike, tokenizer_path: str | os.PathLike, num_workers: int | None = None, errors: str = "strict",
                    out_h5_folder: str | os.PathLike | None = None, chunk_bytes: int = CHUNK_BYTES) -> Path:
    """Tokenize every text in `folder` (or one text, given its path) into .pt chunks beside it; started again, it goes on where it stopped.

    The ids are those of each whole text, in the order of the files' names, nothing between. Texts are only read.

    Args:
        folder: folder with .txt, .txt.gz, .txt.xz or .txt.zst files, or the path of one.
        tokenizer_path: tokenizer folder.
        num_workers: processes that encode; all cores by default.
        errors: "strict" refuses text that is not UTF-8 and says where; "replace" turns what is not into U+FFFD.
        out_h5_folder: where the .h5 will be made, if its disk is to be checked for room as well.
        chunk_bytes: bytes of text a chunk; part of the chunks' identity.

    Returns the folder with the chunks, for `make_h5`.

    Raises UserError where there is no text, a text is not UTF-8, the disk has too little room, or the chunks that are there are of another
    text or tokenizer.
    """
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers: expected 1 or more, found {num_workers}")
    texts = find_texts(folder)
    toki = get_tokenizer(tokenizer_path)
    process = this_process()
    chunks_folder = chunks_folder_of(folder, texts)
    job = Job(chunks_folder, texts, toki, errors, chunk_bytes)
    if job.finished():
        return chunks_folder

    reason = why_not_fast(toki)
    if reason and process.rank == 0:
        say(f"{tokenizer_path}: {reason}; the tokenizers library encodes, which takes some ten times as long")
    if process.rank == 0:
        check_space(texts, Encoder(toki, fast=not reason), chunks_folder, out_h5_folder)
        job.begin()
        if process.world_size == 1:  # else another process may be writing one
            remove_leftovers(chunks_folder, "chunk_*.pt")

    workers = num_workers or max(1, available_cores() // process.local_world_size)
    pool = [Worker(Path(tokenizer_path), fast=not reason, errors=errors) for _ in range(workers)]
    try:
        chunks = _encode(job, pool, process)
        if not chunks:
            raise UserError(f"{folder}: the text is empty")
        if process.rank == 0:
            if process.world_size > 1 and not _others_finish(job, chunks):
                _encode(job, pool, Process(0, 1, 1))
            job.finish(chunks)
    finally:
        for worker in pool:
            worker.close()
    return chunks_folder


def chunks_folder_of(folder: str | os.PathLike, texts: list[Path]) -> Path:
    """Where the chunks of these texts go: `<text>_tokens` beside a single text, `<folder>_tokens` in the folder of several."""
    name = text_name(texts[0]) if len(texts) == 1 else Path(folder).resolve().name
    return texts[0].parent / f"{name}_tokens"


def available_cores() -> int:
    """Cores this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete what a killed process left half-written: the temporary files of `modules.files.replacing`."""
    for path in folder.glob(f".{names}.*.tmp"):
        path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict | None:
    """The manifest in a chunks folder, None where there is none. Raises UserError where it cannot be read."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder} to tokenize anew") from error


def _encode(job: Job, workers: list[Worker], process: Process) -> list[Chunk]:
    """Make this process's part of the chunks, those already there excepted. Returns the list of all chunks, the other processes' included."""
    idle = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def encode_and_write(chunk: Chunk, data: bytes) -> tuple[Chunk, Encoded]:
        worker = idle.get()
        try:
            encoded = worker.encode(data)
        finally:
            idle.put(worker)
        if isinstance(encoded, NotUtf8):
            raise not_utf8(job.texts[chunk.text], chunk.piece.start + encoded.position, data[encoded.position])
        job.write(chunk, encoded)
        return chunk, encoded

    def settle() -> None:
        chunk, encoded = running.popleft().result()  # in order: the first error in the text is the one reported
        progress.count(chunk.piece, len(encoded.ids))
        forced = [chunk.piece.start + position for position in encoded.forced] + ([chunk.piece.stop] if chunk.piece.forced else [])
        progress.warn_of_cuts(job.texts[chunk.text], forced)

    chunks, running = [], collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(len(workers) + 2)  # more than workers: some write while the workers encode
    with Progress(job.folder.name.removesuffix("_tokens"), job.texts, process.rank, process.world_size) as progress:
        try:
            for chunk, source in job.chunks():
                chunks.append(chunk)
                progress.estimate(chunk.text, source)
                if chunk.number % process.world_size != process.rank:
                    continue
                if job.is_done(chunk, source):
                    progress.skip(chunk.piece)
                    continue
                if len(running) == 2 * len(workers):
                    settle()
                running.append(threads.submit(encode_and_write, chunk, source.read(chunk.piece.start, chunk.piece.stop)))
            while running:
                settle()
        finally:
            threads.shutdown(cancel_futures=True)
    return chunks


def _others_finish(job: Job, chunks: list[Chunk]) -> bool:
    """Wait until the other processes' chunks are all there; False where none came for SILENCE_S."""
    missing, heard = [chunk.number for chunk in chunks], time.monotonic()
    while True:
        still = [number for number in missing if job.read(number) is None]
        if not still:
            return True
        if len(still) < len(missing):
            missing, heard = still, time.monotonic()
            say(f"waiting for {len(missing)} chunks of the other processes")
        if time.monotonic() - heard > SILENCE_S:
            say(f"no new chunk from the other processes for {SILENCE_S:.0f} s: taking over the {len(missing)} that are missing")
            return False
        time.sleep(1)
