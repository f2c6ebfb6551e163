"""A process that encodes pieces of text for `chunks.py`: pieces come in on its standard input, ids go out on its standard output.

A plain child process and not `multiprocessing`: that would import the user's script again in every worker, and so run
it again where its calls do not stand under `if __name__ == "__main__"`. Workers hold no torch, share nothing and end when the parent
does, however it ends, because their input ends.
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

from modules.errors import UserError
from modules.tok_utils.encoder import Encoder
from modules.tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parents[2]
START = f"import sys; from {__name__} import main; main(*sys.argv[1:])"  # not -m: what it pickles must belong to this module, not to __main__


class Encoded(NamedTuple):
    """The ids of a piece, [tokens], the UTF-8 bytes they stand for, checksums of what was read and of the ids; or the byte that is not UTF-8."""
    ids: np.ndarray
    text_bytes: int = 0
    text_crc32: int = 0
    ids_crc32: int = 0
    invalid_at: int | None = None


class Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, tokenizer_path: Path, fast: bool, errors: str):
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(tokenizer_path.resolve()), "fast" if fast else "library", errors],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"})

    def encode(self, data: bytes) -> Encoded:
        """Encode one piece of text; returns when the worker has. Raises UserError where the worker has died."""
        try:
            pickle.dump(data, self._process.stdin, protocol=5)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()  # whatever it was at: nothing more can be said to it
            status = self._process.wait()
            raise UserError(f"a worker process ended with status {status} (killed, or out of memory?); "
                            "start again to go on from the last whole chunk, with fewer --num_workers if memory is short") from error

    def close(self) -> None:
        """End the process, at once if it is at work."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(OSError):  # what was still buffered for it
            self._process.stdin.close()


def encode_piece(data: bytes, encoder: Encoder, errors: str) -> Encoded:
    """Decode and encode one piece of text."""
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        return Encoded(np.zeros(0, np.uint16), invalid_at=error.start)
    ids = encoder.encode(text)
    text_bytes = len(data) if errors == "strict" else len(text.encode("utf-8"))
    return Encoded(ids, text_bytes, zlib.crc32(data), zlib.crc32(ids))


def main(tokenizer_path: str, how: str, errors: str) -> None:
    """Encode pieces until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    encoder = Encoder(get_tokenizer(tokenizer_path), fast=how == "fast")
    while True:
        try:
            data = pickle.load(sys.stdin.buffer)
            pickle.dump(encode_piece(data, encoder, errors), sys.stdout.buffer, protocol=5)
            sys.stdout.buffer.flush()
        except (EOFError, OSError, pickle.UnpicklingError):  # the parent is gone
            os._exit(0)  # not sys.exit: flushing a broken pipe would complain
