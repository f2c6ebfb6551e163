"""Errors that a user can act on, and how a script shows them.

A mistake in a path, a config or a data file is not a bug: it deserves one line
that says what was expected, what was found and what to do, and no traceback.
Code raises `UserError` with that line; each script wraps its main function in
`one_line_errors`, which prints the line on stderr and exits with status 1.
Memory that is not there and Ctrl-C are told likewise. Anything else is a bug of ours and keeps its traceback.
"""

import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

from modules.system import console

# What torch and numpy say, each on its devices, when memory is short.
AMOUNT = re.compile(r"(?:tried|unable) to allocate ([\d.]+ \w+)", re.IGNORECASE)
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|bad_alloc", re.IGNORECASE)
INTERRUPTED = 128 + signal.SIGINT

T = TypeVar("T")


class UserError(Exception):
    """Something outside the program is wrong; the message is one line a user can act on. status: with which it ends a
    script."""

    status = 1


class Held(UserError):
    """Another process is at work on what was asked for: nothing is wrong, and later it may be done."""

    status = 75  # sysexits.h calls it EX_TEMPFAIL


def one_line_errors(main: Callable) -> Callable:
    """Decorate a script's main, which does the slow imports: what the user can act on ends it with one line on stderr
    and status 1 (its own, where the error has one).

    That is a UserError, a failed file operation and memory that is not there. Ctrl-C ends it with one line, by SIGINT;
    so does main when it exits with status 130 because it was stopped by Ctrl-C.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        console.safe_streams()
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            die_of_interrupt("interrupted")
        except SystemExit as end:
            if end.code == INTERRUPTED:
                die_of_interrupt()
            raise
        except Exception as error:
            line = described(error)
            if line is None:
                raise
            console.tell(f"error: {console.one_line(line)}", sys.stderr)
            raise SystemExit(getattr(error, "status", 1)) from None

    return wrapped


def described(error: Exception) -> str | None:
    """One line for an error that a user can act on; None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return describe_os_error(error)
    if isinstance(error, (MemoryError, RuntimeError)):
        amount = AMOUNT.search(str(error))
        if amount or isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            return "not enough memory" + (f": {size(amount[1])} could not be had" if amount else "")
    return None


def size(amount: str) -> str:
    """An amount of memory as torch ("4000000000 bytes") and numpy ("3.73 GiB") have it, in the words of the latter."""
    number, _, unit = amount.partition(" ")
    return f"{float(number) / 2**30:,.2f} GiB" if unit == "bytes" else amount


def die_of_interrupt(line: str | None = None) -> NoReturn:
    """End this process as Ctrl-C ends one, so that a shell's loop over such processes ends as well; Python does that on
    every platform.

    Shells have status 130 for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
    if line:
        console.tell(line, sys.stderr)
    sys.excepthook = lambda *_: None
    raise KeyboardInterrupt from None


def interruptibly(call: Callable[[], T]) -> T:
    """`call()`, of a library that does not come back to Python for long: in a thread of its own, so that Ctrl-C is
    heard meanwhile."""
    outcome = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


# What to do about a failed file operation, by its errno.
ADVICE = {
    errno.ENOSPC: "make room on that disk, or give a place on another",
    errno.EDQUOT: "your quota there is used up: make room, or give another place",
    errno.EFBIG: "files there may not grow so large: raise the limit (ulimit -f), or give a place on another disk",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "ask for permission there, or give another place",
    errno.EPERM: "ask for permission there, or give another place",
    errno.EIO: "the disk, or the network to it, fails: look into the system's log",
    errno.ESTALE: "a network file system has lost it: start again",
    errno.ENOENT: "look for a mistake in the path",
    errno.EEXIST: "a file is in the way of a folder: move it, or give another place",
    errno.ENOTDIR: "a file is in the way of a folder: move it, or give another place",
    errno.EISDIR: "give the name of a file",
    errno.ELOOP: "its links lead in a circle: mend them",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENXIO: "nothing takes what is written there: give another place",
}


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation: the path, what failed, and what to do."""
    reason = os.strerror(error.errno) if error.errno else (str(error).splitlines() or [type(error).__name__])[0]
    path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    return path + reason + (f"; {ADVICE[error.errno]}" if error.errno in ADVICE else "")
