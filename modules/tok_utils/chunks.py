"""Text to chunks of ids: `tokenize_folder`, on all cores, in bounded memory, resumable at any moment.

The texts are cut into pieces of CHUNK_BYTES (`cuts.py`); each piece becomes one file `chunk_000123.pt` in
`<text>_tokens/` beside the text, written whole or not at all; `job.py` knows which are there.

The main thread reads and cuts, `num_workers` threads encode, two more write meanwhile: all libraries that do the work
let other threads of Python run. Under torchrun process r of n takes chunks r, r + n, r + 2n ..., and they meet before
the work and after it; one that dies is torchrun's to start again, and goes on from the chunks on the disk.
"""

import collections
import concurrent.futures
import contextlib
import os
import queue
from pathlib import Path

import numpy as np

from modules.system.errors import UserError
from modules.system.limits import LARGEST_CHUNK, WORKERS_A_CORE, check_number
from modules.system.locks import alone
from modules.system.processes import Process, available_cores, meet, this_process
from modules.tok_utils.disk import check_space
from modules.tok_utils.encoder import Differs, Encoded, Encoder, NotUtf8, fast_tokenizer, ids_differ
from modules.tok_utils.inspection import check_kept, taken_texts
from modules.tok_utils.job import Chunk, Job, chunks_folder_of
from modules.tok_utils.progress import Progress, say
from modules.tok_utils.readers import Reading
from modules.tok_utils.text_source import PLAIN, find_texts, not_utf8
from modules.tokenizer import Tokenizer, get_tokenizer

CHUNK_BYTES = 4 << 20
BYTES_A_THREAD = 8 << 20  # of files, at least
ENCODERS = ("gigatoken", "tokenizers")


def tokenize_folder(
    folder: str | os.PathLike,
    tokenizer_path: str | os.PathLike,
    num_workers: int | None = None,
    errors: str = "strict",
    out_h5_folder: str | os.PathLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    encoder: str = "gigatoken",
    reading: Reading = PLAIN,
    chunks_folder: Path | None = None,
) -> Path:
    """Tokenize every text in `folder` (or one text, given its path) into .pt chunks beside it; started again, it goes
    on where it stopped.

    The ids are those of each whole text, in the order of the files' names, nothing between. Texts are only read.

    Args:
        folder: folder with texts (`readers.py` says of which names), or the path of one.
        tokenizer_path: tokenizer folder.
        num_workers: threads that encode, at most four a core; all cores by default.
        errors: "strict" refuses text that is not UTF-8 and says where; "replace" turns what is not into U+FFFD.
        out_h5_folder: where the .h5 will be made, if its disk is to be checked for room as well.
        chunk_bytes: bytes of text a chunk; part of the chunks' identity.
        encoder: the library that encodes, "gigatoken" or "tokenizers". The ids are the same; tokenizers encodes as well
            where gigatoken does not know the tokenizer.
        reading: how the files become text (`readers.py`); part of the chunks' identity.
        chunks_folder: where the chunks go instead; the .h5 is called as it is, without the "_tokens" at the end.

    Returns the folder with the chunks, for `make_h5`.

    Raises UserError where there is no text, a text is not UTF-8, the tokenizer does not keep what it says, the two
    libraries differ on a sample, the disk has too little room, or the chunks that are there are of another text or
    tokenizer. Another command at work on the same chunks is waited for.
    """
    if num_workers is not None:
        check_number("num_workers", num_workers, 1, 1 << 20, "threads")
    check_number(
        "chunk_bytes", chunk_bytes, 1, LARGEST_CHUNK, "each thread holds two such pieces and their ids in memory"
    )
    for name, value, known in (("errors", errors, ("strict", "replace")), ("encoder", encoder, ENCODERS)):
        if value not in known:
            raise UserError(f'{name}: expected "{known[0]}" or "{known[1]}", found {value!r}')
    process = this_process()
    texts = taken_texts(Path(folder), reading) if process.rank == 0 else find_texts(folder)
    toki = get_tokenizer(tokenizer_path)
    chunks_folder = chunks_folder or chunks_folder_of(folder, texts)

    def job() -> Job:
        return Job(chunks_folder, texts, toki, errors, chunk_bytes, reading)

    if process.world_size == 1 and job().finished():
        return chunks_folder
    threads = _number_of_threads(num_workers, process, sum(text.stat().st_size for text in texts))
    encoders = _encoders(toki, errors, encoder, threads, process)
    meet(process, "come")
    # The lock keeps other commands off; the other processes of this one share the work.
    with contextlib.nullcontext() if process.rank else alone(chunks_folder):
        mine = None
        if process.rank == 0:
            mine = job()
            if not mine.finished():  # by the command that was waited for
                check_kept(texts, toki, reading, encoders[0])
                check_space(texts, encoders[0], chunks_folder, out_h5_folder, reading)
                mine.begin()
        meet(process, "begun")
        mine = mine or job()
        if not mine.finished():
            chunks = _encode(mine, encoders, process)
            if not chunks:
                raise UserError(f"{texts[0]}: the text is empty")
            meet(process, "made their chunks")
            if process.rank == 0:
                mine.finish(chunks)
    return chunks_folder


def _number_of_threads(wanted: int | None, process: Process, text_bytes: int) -> int:
    """`wanted`, or one a core, but no more than do any good: the tokenizer of each takes a tenth of a second."""
    cores = max(1, available_cores() // process.local_world_size)
    most = WORKERS_A_CORE * cores
    if wanted is not None and wanted > most and process.rank == 0:
        say(
            f"num_workers: {wanted:,} are more than {WORKERS_A_CORE} for each of {cores} cores, which would wait "
            f"for each other: {most} it is"
        )
    return min(wanted or cores, most, 1 + text_bytes // BYTES_A_THREAD)


def _encoders(toki: Tokenizer, errors: str, encoder: str, threads: int, process: Process) -> list[Encoder]:
    """One a thread; that it is the library which encodes is said once."""
    ready = fast_tokenizer(toki) if encoder == "gigatoken" else "so it was asked for"
    if not isinstance(ready, str):
        return [Encoder(toki, True, errors, ready if thread == 0 else None) for thread in range(threads)]
    if process.rank == 0:
        say(f"{toki.folder}: {ready}; the tokenizers library encodes, which takes some fifty times as long")
    return [Encoder(toki, False, errors) for _ in range(threads)]


def _encode(job: Job, encoders: list[Encoder], process: Process) -> list[Chunk]:
    """Make this process's part of the chunks, those already there excepted. Returns the list of all chunks, the other
    processes' included."""
    idle = queue.LifoQueue()  # the one that worked last knows most words
    for encoder in reversed(encoders):
        idle.put(encoder)

    def encode_and_write(chunk: Chunk, data: bytes, documents: np.ndarray | None) -> tuple[Chunk, Encoded]:
        encoder = idle.get()
        try:
            encoded = encoder.encode_chunk(data, documents)
        finally:
            idle.put(encoder)
        if isinstance(encoded, NotUtf8):
            raise not_utf8(job.texts[chunk.text], chunk.piece.start + encoded.position, data[encoded.position])
        if isinstance(encoded, Differs):
            raise ids_differ(job.texts[chunk.text], f"from byte {chunk.piece.start + encoded.position:,}")
        job.write(chunk, encoded)
        return chunk, encoded

    def settle() -> None:
        chunk, encoded = running.popleft().result()  # in order: the first error in the text is the one reported
        progress.count(chunk.piece, len(encoded.ids))
        forced = [chunk.piece.start + position for position in encoded.forced] + (
            [chunk.piece.stop] if chunk.piece.forced else []
        )
        progress.warn_of_cuts(job.texts[chunk.text], forced)

    chunks, running = [], collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(
        len(encoders) + 2
    )  # more than encoders: some write while the others encode
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
                if len(running) == 2 * len(encoders):
                    settle()
                start, stop, _ = chunk.piece
                documents = source.document_starts(start, stop) - np.uint64(start) if source.has_documents else None
                running.append(threads.submit(encode_and_write, chunk, source.read(start, stop), documents))
            while running:
                settle()
        finally:
            threads.shutdown(cancel_futures=True)
    return chunks
