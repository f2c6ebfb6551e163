"""Errors that a user can act on, and how a script shows them.

A mistake in a path, a config or a data file is not a bug: it deserves one line
that says what was expected, what was found and what to do, and no traceback.
Code raises `UserError` with that line; each script wraps its main function in
`one_line_errors`, which prints the line on stderr and exits with status 1.
Anything else is a bug of ours and keeps its traceback.
"""
import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something outside the program is wrong; the message is one line a user can act on."""


def one_line_errors(main: Callable) -> Callable:
    """Decorate a script's main: a UserError or a failed file operation ends it with one line on stderr and status 1."""
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            print(f"error: {describe_os_error(error)}", file=sys.stderr)
        raise SystemExit(1)
    return wrapped


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
    errno.ENXIO: "nothing takes what is written there: give another place"}


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation: the path, what failed, and what to do."""
    reason = os.strerror(error.errno) if error.errno else (str(error).splitlines() or [type(error).__name__])[0]
    path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    return path + reason + (f"; {ADVICE[error.errno]}" if error.errno in ADVICE else "")
