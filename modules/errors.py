"""Errors that a user can act on, and how a script shows them.

A mistake in a path, a config or a data file is not a bug: it deserves one line
that says what was expected, what was found and what to do, and no traceback.
Code raises `UserError` with that line; each script wraps its main function in
`one_line_errors`, which prints the line on stderr and exits with status 1.
Anything else is a bug of ours and keeps its traceback.
"""
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


def describe_os_error(error: OSError) -> str:
    """One line for a failed file operation: what failed, and on which path."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
