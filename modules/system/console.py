"""What the user is told: lines, bars and warnings, none of which can end the work that they tell of.

A reader that went away, a full disk behind a redirection, a closed descriptor, a character that the encoding lacks:
whatever becomes of standard output and error, the functions here return. A stream that fails is told of once on the
other one, and left alone from then on. Whatever else may fail beside the work (a picture, W&B) goes through `attempt`.
"""

import atexit
import contextlib
import errno
import io
import math
import os
import select
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

try:
    from tqdm import tqdm
except ValueError:  # a TQDM_ variable of the environment that is no number
    for _name in [_name for _name in os.environ if _name.startswith("TQDM_")]:
        del os.environ[_name]
    from tqdm import tqdm

LINE_SECONDS = 60.0  # from one line to the next of those that stand for a bar where there is no terminal
PATIENCE_S = 10.0  # with a reader that lags behind a pipe which does not block
UNPRINTABLE = {
    "Cc",
    "Cs",
    "Zl",
    "Zp",
}  # Unicode's categories of what would break a line, move the cursor or cannot be encoded

T = TypeVar("T")

_failed: list = []  # streams that are left alone
_warned: set[str] = set()


# Telling
# ----------------------------------------------------------------------------------------------------------------


def tell(line: object, stream=None) -> None:
    """Say a line, or several, on `stream` (standard output by default), above a bar if there is one. Never raises."""
    sink = _Sink(stream or sys.stdout)
    text = printable(str(line), keep="\n\t") + "\n"
    try:
        with tqdm.external_write_mode(file=sink):
            sink.write(text)
    except Exception:  # of a bar; the sink itself raises nothing
        sink.write(text)


def write(text: str, stream=None) -> bool:
    """Write a part of a line on `stream` (standard output by default). Returns whether it is still read; never
    raises."""
    sink = _Sink(stream or sys.stdout)
    sink.write(text)
    return not any(sink == each for each in _failed)


def warn_once(line: str, key: str | None = None) -> None:
    """Say "warning: `line`" on standard error, as one line, unless the same, or another of this `key`, was said before.
    Never raises."""
    if (key or line) not in _warned:
        _warned.add(key or line)
        tell(f"warning: {one_line(line)}", sys.stderr)


def attempt(what: str, call: Callable[[], T]) -> T | None:
    """`call()`; where it raises an Exception, None after a warning that names `what` ("the picture of the loss", say)
    and the reason.

    The warning comes once for each `what`.
    """
    try:
        return call()
    except Exception as error:
        warn_once(f"{what}: {reason(error)}", key=what)
        return None


def bar(*args, line_seconds: float = LINE_SECONDS, **kwargs) -> "Bar":
    """A progress bar on standard error, with tqdm's arguments. Where that is no terminal but a file, say, it gets a
    line every `line_seconds` instead. Where neither can be shown, the work that it counts goes on without."""
    if kwargs.get("desc"):
        kwargs["desc"] = one_line(kwargs["desc"])
    flush_streams()  # tqdm does, but not as safely
    kind = Bar if on_terminal() else partial(Lines, line_seconds=line_seconds)
    try:
        return kind(*args, **{"file": _Sink(sys.stderr)} | kwargs)
    except Exception as error:
        warn_once(f"no progress bars: {reason(error)}", key="bars")
        return Bar(*args, **kwargs | {"disable": True})


def on_terminal() -> bool:
    """Whether standard error is a terminal, on which a bar can be drawn again and again."""
    try:
        return sys.stderr.isatty()
    except Exception:  # closed, or none
        return False


class Bar(tqdm):
    """A tqdm that cannot fail when it is drawn or taken away."""

    def display(self, *args, **kwargs):
        return self._or_none(super().display, *args, **kwargs)

    def clear(self, *args, **kwargs):
        return self._or_none(super().clear, *args, **kwargs)

    def _or_none(self, draw, *args, **kwargs):
        try:
            return draw(*args, **kwargs)
        except Exception as error:
            self.disable = True
            warn_once(f"no progress bars: {reason(error)}", key="bars")


class Lines(Bar):
    """A bar that is not drawn, but told of in a line every `line_seconds`; where it was told of, at its end too."""

    def __init__(self, *args, line_seconds: float, **kwargs):
        self._line_seconds, self._next = line_seconds, time.monotonic() + line_seconds
        self._told: float | None = None  # the count of the last line
        looked_at = {"mininterval": line_seconds / 60, "miniters": 1}  # whether it is time, in every step
        super().__init__(*args, **kwargs | looked_at | {"file": io.StringIO()})

    def display(self, msg=None, pos=None):
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._line_seconds
            self._told = self.n
            self._or_none(lambda: tell(in_words(self.format_dict), sys.stderr))

    def clear(self, *args, **kwargs):
        pass

    def close(self):
        if self._told not in (None, self.n) and not self.disable:
            self._next = 0.0
            self.display()
        self._next = math.inf
        super().close()


def in_words(bar: Mapping[str, Any]) -> str:
    """What a bar shows (tqdm's `format_dict`), in a line of a log: how much of how much, how fast, how much longer."""
    counted, total, unit, elapsed = bar["n"], bar["total"], bar["unit"], bar["elapsed"]
    name = bar["prefix"].removesuffix(": ")
    rate = bar["rate"] or ((counted - bar["initial"]) / elapsed if elapsed else 0.0)
    if bar["unit_scale"]:
        amount = partial(tqdm.format_sizeof, suffix=unit)
        words, fast = [amount(counted)], f"{amount(rate)}/s"
    else:
        amount = "{:,.0f}".format
        words, fast = [f"{amount(counted)} {unit}"], f"{amount(rate) if rate >= 100 else format(rate, '.3g')} {unit}/s"
    if total:
        words = [f"{amount(counted)} of {amount(total)} {unit * (not bar['unit_scale'])}".strip()]
        words[0] += f" ({100 * counted / total:.0f} %)"
    words.append(f"{fast}, {tqdm.format_interval(elapsed)} so far")
    if total and rate and counted < total:
        words.append(f"{tqdm.format_interval((total - counted) / rate)} left")
    if bar["postfix"]:
        words.append(bar["postfix"])
    return (f"{name}: " if name else "") + ", ".join(words)


# Words
# ------------------------------------------------------------------------------------------------------------------


def one_line(text) -> str:
    """`text` with all that would break the line, or cannot be written, as escapes: a path may hold a newline, or bytes
    that are no text."""
    return printable(str(text), keep="")


def printable(text: str, keep: str) -> str:
    """`text` with control characters and lone surrogates as escapes, those in `keep` excepted."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in UNPRINTABLE and letter not in keep else letter
        for letter in text
    )


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# Streams
# ----------------------------------------------------------------------------------------------------------------


class _Sink:
    """A text stream whose writing never raises. Equal to the stream that it stands for, whose other attributes it
    has."""

    def __init__(self, stream):
        self._stream = stream._stream if isinstance(stream, _Sink) else stream

    def __eq__(self, other):
        return self._stream is (other._stream if isinstance(other, _Sink) else other)

    __hash__ = None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write and flush; what the encoding lacks becomes backslash escapes."""
        stream = self._stream
        if stream is not None and not any(stream is each for each in _failed):
            try:
                _write(stream, _encodable(text, getattr(stream, "encoding", None)))
            except Exception as error:
                _give_up(self, error)
        return len(text)

    def flush(self) -> None:
        """Flush what others have written past this object."""
        self.write("")


def _encodable(text: str, encoding: str | None) -> str:
    try:
        return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
    except (LookupError, ValueError):  # an encoding that is no text's
        return text.encode("ascii", "backslashreplace").decode()


def _write(stream, text: str) -> None:
    """Write all of `text`. Raises whatever the stream raises, and BlockingIOError where nobody reads from a pipe that
    does not block."""
    buffer = getattr(stream, "buffer", None)
    raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer
    if not isinstance(raw, io.RawIOBase):
        stream.write(text)
        stream.flush()
        return
    # Past the buffers, which lose what a full pipe does not take.
    _patiently(raw, lambda: stream.flush() or True)
    data = text.replace("\n", os.linesep).encode(stream.encoding)
    while data:
        data = data[_patiently(raw, partial(raw.write, data)) :]


def _patiently(raw: io.RawIOBase, call: Callable[[], T | None]) -> T:
    """What `call` returns, once there is room in the pipe."""
    until = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(BlockingIOError):
            if (done := call()) is not None:
                return done
        if (left := until - time.monotonic()) <= 0:
            raise BlockingIOError(errno.EAGAIN, "nobody reads from the pipe")
        select.select([], [raw], [], left)


def _give_up(sink: _Sink, error: Exception) -> None:
    """Leave a stream alone from now on, and say so on the other one."""
    _failed.append(sink._stream)
    with contextlib.suppress(Exception):
        # What is still buffered would fail again when Python ends, and change the exit status.
        if (descriptor := sink.fileno()) in (1, 2):
            _to_nowhere(descriptor)
    for name, one, other in (("standard output", sys.stdout, sys.stderr), ("standard error", sys.stderr, sys.stdout)):
        if sink == one:
            _Sink(other).write(f"warning: nothing more can be written to {name} ({one_line(reason(error))})\n")


def _to_nowhere(descriptor: int) -> None:
    """Make `descriptor` one that takes and gives nothing, in this process and those that it starts."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def safe_streams() -> None:
    """Make standard output and error of this process streams that cannot fail, whoever writes to them.

    Where the process was started with them closed they lead nowhere. Otherwise the next file opened would get their
    number, a dataset say, and what a C library has to complain of would be written into it.
    """
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            try:
                os.fstat(descriptor)
            except OSError:
                _to_nowhere(descriptor)
                os.set_inheritable(descriptor, True)
    for name in ("stdout", "stderr"):
        setattr(sys, name, _Sink(getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")))


@atexit.register  # this module is imported before nearly all others, so this comes after what they registered
def flush_streams() -> None:
    """Flush standard output and error, so that Python, when it ends, finds nothing to complain of."""
    for stream in (sys.stdout, sys.stderr):
        _Sink(stream).flush()
