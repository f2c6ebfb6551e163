"""Text to chunks of ids: `tokenize_folder`, on all cores, in bounded memory, resumable at any moment.

The texts are cut into pieces of CHUNK_BYTES (`cuts.py`); each piece becomes one file `chunk_000123.pt` in
`<text>_tokens/` beside the text, written whole or not at all; `job.py` knows which are there.

One process reads and cuts, `num_workers` child processes encode, threads of the first write what they return; reading,
encoding and writing thus overlap, with two pieces a worker in flight. Pieces are 4 MB: 0.2 s of work for a worker,
which stays at 200 MB. Under torchrun process r of n takes chunks r, r + n, r + 2n ...; files in the shared folder are
all they share, so the processes need no connection, and process 0 does the part of any that fell silent.
"""

import collections
import concurrent.futures
import os
import queue
import time
from pathlib import Path

from modules.system.errors import UserError
from modules.system.limits import LARGEST_CHUNK, WORKERS_A_CORE, check_number
from modules.system.locks import alone
from modules.system.processes import Process, available_cores, this_process
from modules.tok_utils.disk import check_space
from modules.tok_utils.encoder import why_not_fast
from modules.tok_utils.inspection import check_kept, taken_texts
from modules.tok_utils.job import MANIFEST, Chunk, Job, chunks_folder_of, remove_leftovers
from modules.tok_utils.progress import Progress, say, wait_for
from modules.tok_utils.readers import Reading
from modules.tok_utils.text_source import PLAIN, find_texts, not_utf8
from modules.tok_utils.worker import Encoded, NotUtf8, Worker
from modules.tokenizer import get_tokenizer

CHUNK_BYTES = 4 << 20
SILENCE_S = 120.0  # after so long without a new chunk from the other processes, process 0 takes theirs over


def tokenize_folder(
    folder: str | os.PathLike,
    tokenizer_path: str | os.PathLike,
    num_workers: int | None = None,
    errors: str = "strict",
    out_h5_folder: str | os.PathLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    reading: Reading = PLAIN,
) -> Path:
    """Tokenize every text in `folder` (or one text, given its path) into .pt chunks beside it; started again, it goes
    on where it stopped.

    The ids are those of each whole text, in the order of the files' names, nothing between. Texts are only read.

    Args:
        folder: folder with texts (`readers.py` says of which names), or the path of one.
        tokenizer_path: tokenizer folder.
        num_workers: processes that encode, at most four a core; all cores by default.
        errors: "strict" refuses text that is not UTF-8 and says where; "replace" turns what is not into U+FFFD.
        out_h5_folder: where the .h5 will be made, if its disk is to be checked for room as well.
        chunk_bytes: bytes of text a chunk; part of the chunks' identity.
        reading: how the files become text (`readers.py`); part of it too.

    Returns the folder with the chunks, for `make_h5`.

    Raises UserError where there is no text, a text is not UTF-8, the tokenizer does not keep what it says, the disk has
    too little room, or the chunks that are there are of another text or tokenizer. Another command at work on the same
    chunks is waited for.
    """
    if num_workers is not None:
        check_number("num_workers", num_workers, 1, 1 << 20, "processes")
    check_number(
        "chunk_bytes", chunk_bytes, 1, LARGEST_CHUNK, "each worker holds two such pieces and their ids in memory"
    )
    if errors not in ("strict", "replace"):
        raise UserError(f'errors: expected "strict" or "replace", found {errors!r}')
    process = this_process()
    texts = taken_texts(Path(folder), reading) if process.rank == 0 else find_texts(folder)
    toki = get_tokenizer(tokenizer_path)
    chunks_folder = chunks_folder_of(folder, texts)
    if Job(chunks_folder, texts, toki, errors, chunk_bytes, reading).finished():
        return chunks_folder
    workers = _number_of_workers(num_workers, process)
    if process.rank:
        _make_chunks(
            Job(chunks_folder, texts, toki, errors, chunk_bytes, reading), workers, process, False, out_h5_folder
        )
    else:
        check_kept(texts, toki, reading)
        with alone(chunks_folder) as held:  # against other commands; the other processes of this one share the work
            job = Job(chunks_folder, texts, toki, errors, chunk_bytes, reading)
            if not job.finished():  # by the command that was waited for
                _make_chunks(job, workers, process, held, out_h5_folder)
    return chunks_folder


def _number_of_workers(wanted: int | None, process: Process) -> int:
    """`wanted`, or one a core, but no more than do any good."""
    cores = max(1, available_cores() // process.local_world_size)
    most = WORKERS_A_CORE * cores
    if wanted is not None and wanted > most and process.rank == 0:
        say(
            f"num_workers: {wanted:,} are more than {WORKERS_A_CORE} for each of {cores} cores, which would wait for each other: {most} it is"
        )
    return min(wanted or cores, most)


def _make_chunks(job: Job, workers: int, process: Process, held: bool, out_h5_folder: str | os.PathLike | None) -> None:
    """Make the chunks that are not there; of several processes the first waits for all and says that they are."""
    folder, toki = job.folder, job.toki
    reason = why_not_fast(toki)
    if reason and process.rank == 0:
        say(f"{toki.folder}: {reason}; the tokenizers library encodes, which takes some ten times as long")
    pool = [Worker(toki.folder, fast=not reason, errors=job.errors) for _ in range(workers)]  # they get ready meanwhile
    try:
        if process.rank == 0:
            check_space(job.texts, toki, folder, out_h5_folder, job.reading)
            job.begin()
            if held and process.world_size == 1:  # else another process may be writing one
                remove_leftovers(folder, "chunk_*.pt")
        else:
            wait_for(folder / MANIFEST, "the first process to begin")
        chunks = _encode(job, pool, process)
        if not chunks:
            raise UserError(f"{job.texts[0]}: the text is empty")
        if process.rank == 0:
            if process.world_size > 1 and not _others_finish(job, chunks):
                _encode(job, pool, Process(0, 1, 1))
            job.finish(chunks)
    finally:
        for worker in pool:
            worker.close()


def _encode(job: Job, workers: list[Worker], process: Process) -> list[Chunk]:
    """Make this process's part of the chunks, those already there excepted. Returns the list of all chunks, the other
    processes' included."""
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
        forced = [chunk.piece.start + position for position in encoded.forced] + (
            [chunk.piece.stop] if chunk.piece.forced else []
        )
        progress.warn_of_cuts(job.texts[chunk.text], forced)

    chunks, running = [], collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(
        len(workers) + 2
    )  # more than workers: some write while the workers encode
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
                running.append(
                    threads.submit(encode_and_write, chunk, source.read(chunk.piece.start, chunk.piece.stop))
                )
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
            say(
                f"no new chunk from the other processes for {SILENCE_S:.0f} s: taking over the {len(missing)} that are missing"
            )
            return False
        time.sleep(1)
