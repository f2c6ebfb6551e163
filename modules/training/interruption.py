"""How a run ends early, and how two runs are kept off the same files."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from modules.system.children import awaited, holder, launcher_is_gone
from modules.system.console import tell
from modules.system.errors import Held, UserError
from modules.system.files import sweep
from modules.training.checkpoint import backup_path
from modules.training.parallel import Processes


class Stop:
    """Whether the run was asked to stop: by a signal to any of its processes, or by the death of its launcher."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self.signal: signal.Signals | None = None

    def asked(self) -> bool:
        """The same answer in all processes, which must all ask."""
        return self._processes.any(self.signal is not None or launcher_is_gone())

    @property
    def reason(self) -> str:
        """What asked."""
        return self.signal.name if self.signal else "another process"

    @property
    def exit_status(self) -> int:
        """128 + signal, as shells have it: a script that goes on only after success will not go on."""
        return 128 + (self.signal or signal.SIGTERM)


@contextlib.contextmanager
def stopping_on_signals(processes: Processes) -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the run to stop; a second SIGINT ends it at once, saving nothing."""
    stop = Stop(processes)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def handler(number, _frame):
        if number == signal.SIGINT and stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def only_run(state: Path, processes: Processes) -> Iterator[None]:
    """Hold the lock of the run whose state is `state`, and delete what killed writers left beside it.

    Held where another process trains the same run, UserError where the names of its backups would be too long. Where
    the file system has no locks (some of networks have none) the run goes on, with a warning.
    """
    if not processes.is_main:
        yield
        return
    state.parent.mkdir(parents=True, exist_ok=True)
    check_length(state)
    lock = open_lock(state.with_name(f"{state.name.removesuffix('.state')}.lock"))
    since = time.monotonic()
    try:
        while not is_held(lock, state):
            os.lseek(lock, 0, os.SEEK_SET)
            said = os.read(lock, 100).decode(errors="replace")
            if not awaited(said, since):
                who = f" ({said.split()[0]})" if said.split() else ""
                raise Held(
                    f"{state}: another process is training this run{who}; wait for it, stop it, or give this one a "
                    "name of its own with --run_name"
                )
            time.sleep(0.2)
        with contextlib.suppress(OSError):  # another user's lock file, that may only be read
            os.ftruncate(lock, 0)
            os.lseek(lock, 0, os.SEEK_SET)
            os.write(lock, holder().encode())
        for folder in (state.parent, backup_path(state, 0).parent):
            sweep(folder)
        yield
    finally:
        os.close(lock)  # and however the process ends, the kernel lets go of it


def is_held(lock: int, state: Path) -> bool:
    """Whether this process holds the lock now. Where there are no locks it does, and the user is warned."""
    try:
        return filelock.lock_descriptor(lock, blocking=False)
    except OSError as error:
        tell(
            f"warning: {state.parent}: files cannot be locked there ({os.strerror(error.errno or 0)}), so a second "
            "process that trains this run at the same time would not be noticed; see to it that there is none",
            sys.stderr,
        )
        return True


def check_length(state: Path) -> None:
    """UserError where the file system does not take this run's longest name, which it would say at the first backup,
    hours later."""
    try:
        os.lstat(backup_path(state, 10**18))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{state}: too long a name for backups beside it, which add their step; give a shorter one with "
                "--run_name, or a shorter path of folders"
            ) from None


def open_lock(path: Path) -> int:
    """A descriptor of the lock file, made if need be; for reading only where another user made it and allows no
    more."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.exists():
            raise
        return os.open(path, os.O_RDONLY | flags)
