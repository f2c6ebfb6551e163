"""Processes that this program starts, and that end with it: a run that nobody watches any more must not go on.

A child is told by an environment variable who started it. Under Linux it asks the kernel, as the first thing it does,
for a SIGTERM at the death of that process; elsewhere a run asks between steps whether it has lost its launcher. Either
way it saves and stops, which can take some seconds: who finds a run's lock held by such an orphan waits for it
(`awaited`).

`supervise` is the one loop that watches over children: the processes of one run on many devices, and runs side by side.

Nothing heavy is imported here: a child asks before it spends seconds on imports.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

LAUNCHER = "BACKPERPLEXITY_LAUNCHER"
PR_SET_PDEATHSIG = 1  # prctl's name for it (sys/prctl.h)
ORPHAN_SECONDS = 60  # to finish a step and write a state
GRACE_SECONDS = 2  # for children that fail because another did to say so: theirs may be the telling error


def start_child(command: Sequence[str], environment: dict[str, str], **options) -> subprocess.Popen:
    """Start a script of ours that ends when this process does. `options` are those of Popen.

    It has a session of its own: a terminal's Ctrl-C comes to it once, from us.
    """
    environment = environment | {LAUNCHER: str(os.getpid())}
    return subprocess.Popen(command, env=environment, start_new_session=True, **options)


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


@dataclass
class Child:
    """A process that this one started. sent: the signals that asked it to stop."""

    name: str
    process: subprocess.Popen
    sent: set[int] = field(default_factory=set)

    def send(self, number: int) -> None:
        """Send a signal, unless it had that one."""
        if number not in self.sent:
            self.sent.add(number)
            self.process.send_signal(number)

    def failed(self, well: Collection[int] = (0,)) -> bool:
        """Whether it ended otherwise than with a status of `well`, or by a signal that it was sent."""
        code = self.process.returncode
        return code not in well and not any(code in (-number, 128 + number) for number in self.sent)


C = TypeVar("C", bound=Child)


def supervise(
    next_one: Callable[[Sequence[C]], C | None],
    together: bool = False,
    ended: Callable[[C], object] = lambda child: None,
    meanwhile: Callable[[Sequence[C]], object] = lambda running: None,
) -> tuple[list[C], list[int]]:
    """Start children and return when the last has ended: the children in the order in which they ended, and the signals
    that came meanwhile.

    next_one: starts the next child beside those that run, or returns None where none is to be started now; all is done
    when none runs and none is to be started. meanwhile: called several times a second with those that run.

    SIGINT and SIGTERM are passed on, so that children save and stop; a second SIGINT ends them at once. Where one
    fails, or an error is raised here, the others are asked to save and stop. Nothing more is started then. together:
    children that wait for each other, of which any may be the one that was asked to stop: when one fails or dies, the
    others are ended after GRACE_SECONDS.
    """
    running: list[C] = []
    over: list[C] = []
    broken_since = None
    well = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM) if together else (0,)

    def look_after(stop: bool = False) -> None:
        """Pass on what came, and see who has ended."""
        for child in running:
            for number in came:
                child.send(number)
            if stop and not together:
                child.send(signal.SIGTERM)
            overdue = broken_since is not None and time.monotonic() > broken_since + GRACE_SECONDS
            if came.count(signal.SIGINT) > 1 or (together and (stop or overdue)):
                child.process.kill()
                child.sent.add(signal.SIGKILL)
        time.sleep(0.1)
        for child in [child for child in running if child.process.poll() is not None]:
            running.remove(child)
            over.append(child)
            ended(child)
        meanwhile(running)

    with signals_kept(signal.SIGINT, signal.SIGTERM) as came:
        try:
            while True:
                while not came and broken_since is None and (child := next_one(running)) is not None:
                    running.append(child)
                if not running:
                    break
                look_after(stop=broken_since is not None and not together)
                if broken_since is None and any(
                    child.failed(well) or together and child.process.returncode < 0 for child in over
                ):
                    broken_since = time.monotonic()
        finally:  # an error of ours, a full disk say: what runs is saved all the same
            while running:
                look_after(stop=True)
        return over, came


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
