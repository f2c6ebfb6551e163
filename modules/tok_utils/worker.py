"""A process that encodes chunks of text for `chunks.py`: text comes in on its standard input, ids go out on its
standard output.

A plain child process and not `multiprocessing`: that would import the user's script again in every worker, and so run
it again where its calls do not stand under `if __name__ == "__main__"`. Workers hold no torch, share nothing and end
when the parent does, however it ends, because their input ends.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.system.errors import UserError
from modules.tok_utils.cuts import pieces
from modules.tok_utils.encoder import Encoder
from modules.tok_utils.text_source import TextInMemory
from modules.tokenizer import Tokenizer, load

FAST_PART_BYTES = (
    1 << 19
)  # encoded at a time: tiktoken needs some 50 bytes for each byte of a piece that the pattern does not split
LIBRARY_PART_BYTES = 1 << 16  # tokenizers some 150 bytes a token
ROOT = Path(__file__).resolve().parents[2]
# Workers are the parallelism. glibc is to keep what one part of a text needed for the next (given back to the kernel
# and asked for again, page by page, it costs 40 % of the speed), and, the thresholds being fixed, no more than that:
# 200 MB of resident size.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
# Not `-m`: what the worker pickles must belong to this module, not to __main__. And `-P`: else Python would look for
# modules in the working folder, where a random.py of the user's would be run in place of its own.
START = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import main; main(*sys.argv[1:])"


class Encoded(NamedTuple):
    """What became of one chunk of text."""

    ids: np.ndarray  # [tokens]
    text_bytes: int  # UTF-8 bytes that the ids stand for
    text_crc32: int  # of the bytes that were read
    ids_crc32: int
    forced: list[int]  # positions in the chunk at which it was cut without a safe place to


class NotUtf8(NamedTuple):
    """The position in a chunk of the first byte that is not UTF-8."""

    position: int


class Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, tokenizer_path: Path, fast: bool, errors: str):
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(tokenizer_path.resolve()), "fast" if fast else "library", errors],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )  # a terminal's Ctrl-C is for the parent alone

    def encode(self, data: bytes) -> Encoded | NotUtf8:
        """Encode one chunk of text; returns when the worker has. Raises UserError where the worker has died."""
        try:
            pickle.dump(data, self._process.stdin, protocol=5)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()  # whatever it was at: nothing more can be said to it
            status = self._process.wait()
            raise UserError(
                f"a worker process ended with status {status} (killed, or out of memory?); "
                "start again to go on from the last whole chunk, with fewer --num_workers if memory is short"
            ) from error

    def close(self) -> None:
        """End the process, at once if it is at work."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):  # what was still buffered for it
            self._process.stdin.close()


def encode_chunk(data: bytes, toki: Tokenizer, encoder: Encoder, part_bytes: int, errors: str) -> Encoded | NotUtf8:
    """Decode and encode one chunk of text, part by part: what encoding needs for its work is in proportion to the
    part."""
    ids, text_bytes, forced = [], 0, []
    for part in pieces(TextInMemory(data), part_bytes, toki):
        try:
            text = data[part.start : part.stop].decode("utf-8", errors)
        except UnicodeDecodeError as error:
            return NotUtf8(part.start + error.start)
        ids.append(encoder.encode(text))
        text_bytes += part.stop - part.start if errors == "strict" else len(text.encode("utf-8"))
        forced += [part.stop] if part.forced else []
    joined = np.concatenate(ids)
    return Encoded(joined, text_bytes, zlib.crc32(data), zlib.crc32(joined), forced)


def main(tokenizer_path: str, how: str, errors: str) -> None:
    """Encode chunks until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    toki, _ = load(Path(tokenizer_path))
    encoder = Encoder(toki, fast=how == "fast")
    part_bytes = FAST_PART_BYTES if how == "fast" else LIBRARY_PART_BYTES
    while True:
        try:
            data = pickle.load(sys.stdin.buffer)
            pickle.dump(encode_chunk(data, toki, encoder, part_bytes, errors), sys.stdout.buffer, protocol=5)
            sys.stdout.buffer.flush()
        except (EOFError, OSError, pickle.UnpicklingError):  # the parent is gone
            os._exit(0)  # not sys.exit: flushing a broken pipe would complain
