"""How a run ends early, and how two runs are kept off the same files."""
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from modules.children import awaited, holder, launcher_is_gone
from modules.errors import UserError
from modules.parallel import Processes


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
    """Hold the lock of the run whose state is `state`. UserError where another process trains the same run."""
    if not processes.is_main or os.name == "nt":  # Windows has no flock
        yield
        return
    import fcntl

    state.parent.mkdir(parents=True, exist_ok=True)
    with open(state.with_suffix(".lock"), "a+") as lock:
        since = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                held = lock.read(100)
                if awaited(held, since):
                    time.sleep(0.2)
                    continue
                who = f" ({held.split()[0]})" if held.split() else ""
                raise UserError(f"{state}: another process is training this run{who}; wait for it, stop it, or give this one a name of its own "
                                "with --run_name") from None
        lock.truncate(0)
        print(holder(), file=lock, flush=True)
        yield  # the kernel lets go of the lock when the process ends, however it ends
