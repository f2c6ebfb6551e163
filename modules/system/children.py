"""Processes that this program starts, and that end with it: a run that nobody watches any more must not go on.

A child is told by an environment variable who started it. Under Linux it asks the kernel, as the first thing it does,
for a SIGTERM at the death of that process; elsewhere a run asks between steps whether it has lost its launcher. Either
way it saves and stops, which can take some seconds: who finds a run's lock held by such an orphan waits for it
(`awaited`).

Nothing heavy is imported here: a child asks before it spends seconds on imports.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

LAUNCHER = "BACKPERPLEXITY_LAUNCHER"
PR_SET_PDEATHSIG = 1  # prctl's name for it (sys/prctl.h)
ORPHAN_SECONDS = 60  # to finish a step and write a state


def start_child(command: Sequence[str], environment: dict[str, str], **options) -> subprocess.Popen:
    """Start a script of ours that ends when this process does. `options` are those of Popen."""
    return subprocess.Popen(command, env=environment | {LAUNCHER: str(os.getpid())}, **options)


def end_with_launcher() -> None:
    """In a child: let the death of its launcher be a SIGTERM. Call it first; it returns at once in processes that
    nobody launched."""
    if LAUNCHER not in os.environ:
        return
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if launcher_is_gone():  # it died before the kernel was asked
        raise SystemExit(128 + signal.SIGTERM)


def launcher_is_gone() -> bool:
    """Whether the launcher of this process has died (SIGKILL, say): training on would be a run that nobody watches."""
    return os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid())


def status_of(returncode: int) -> int:
    """A child's exit status as shells have it, 128 + signal where a signal ended it."""
    return returncode if returncode >= 0 else 128 - returncode


def how_it_ended(returncode: int) -> str:
    """In words."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-returncode).name
        return f"was killed by {name}" + (", as the kernel does where memory is short" if name == "SIGKILL" else "")
    return f"was killed by signal {-returncode}"


@contextlib.contextmanager
def signals_kept(*numbers: signal.Signals) -> Iterator[list[int]]:
    """A list to which signals are added instead of ending this process."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# Who holds a lock
# -------------------------------------------------------------------------------------------------------


def holder() -> str:
    """What who holds a lock writes into it: this process, and who launched it."""
    return f"{os.getpid()} {os.environ.get(LAUNCHER, '')}"


def awaited(held: str, since: float) -> bool:
    """Whether a lock that holds these words is worth waiting for: its holder's launcher has died, so it is about to
    stop.

    since: when the waiting began (time.monotonic()).
    """
    words = held.split()
    if len(words) < 2 or time.monotonic() - since > ORPHAN_SECONDS:
        return False
    return parent_of(words[0]) not in (None, words[1])


def parent_of(pid: str) -> str | None:
    """The process that a process belongs to, another one once the first has died; None where the system does not
    tell."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8", errors="replace") as facts:
            return facts.read().rsplit(")", 1)[1].split()[1]
    except (OSError, ValueError, IndexError):
        return None
