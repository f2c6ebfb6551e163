"""One command at a time on the same thing: folder of chunks, tokenizer or .h5."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from modules.system.console import tell


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Hold the lock on what is to be made at `path`, after waiting, and saying so, for another process that holds it.

    Yields whether it is held: where a file system has no locks, that is said, and the work goes on without one.
    The system lets go of it when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"{path}: another process is at work on it; waiting until it has ended", sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else error
        tell(f"{path}: no lock can be had here ({reason}); see to it that no other command works on it", sys.stderr)
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)  # while it is held: who waits for it sees that and makes another
        lock.release()
