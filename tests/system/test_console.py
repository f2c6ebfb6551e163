"""What the user is told cannot end the work: streams of every kind of failing, Ctrl-C, missing memory."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.system import console
from modules.system.errors import UserError, described, interruptibly
from tests.conftest import ROOT

GREEK = "Ἐν ἀρχῇ"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
MAIN = """import sys
from modules.system import console
from modules.system.errors import UserError, one_line_errors
@one_line_errors
def main():
    """
TALK = """for i in range(200): console.tell(f"line {i} Ἐν ἀρχῇ")
    for _ in console.bar(range(200), desc="ἀρχῇ"): console.warn_once("one\\ntwo")
    print("printed by others")
    open("done", "w").close()
main()"""


class Stream(io.StringIO):
    """A stream that fails with `error` when `call` has been made `calls` times."""

    def __init__(self, error=None, call="write", calls=0, encoding="utf-8", terminal=True):
        super().__init__()
        self.error, self.call, self.left, self.named, self.terminal = error, call, calls, encoding, terminal

    def isatty(self):
        return self.terminal

    @property
    def encoding(self):
        return self.named

    def fail(self, call):
        if self.error and call == self.call:
            self.left -= 1
            if self.left < 0:
                raise self.error

    def write(self, text):
        self.fail("write")
        text.encode(self.encoding)
        return super().write(text)

    def flush(self):
        self.fail("flush")


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "I/O error"),
    OSError(errno.EBADF, "Bad file descriptor"),
    ValueError("I/O operation on closed file."),
    AttributeError("no write"),
    RuntimeError(""),
]


@pytest.fixture
def streams(monkeypatch):
    """Puts two streams in the place of standard output and error; what was told before is forgotten."""
    monkeypatch.setattr(console, "_warned", set())
    monkeypatch.setattr(console, "_failed", [])

    def put(out, err):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return put


def talk():
    """All ways to tell; what the work in between came to."""
    console.tell("first")
    total = 0
    with console.bar(total=30, desc="counting", mininterval=0) as bar:
        for number in console.bar(range(30), desc="nested", mininterval=0, leave=False):
            total += number
            bar.update()
            bar.set_postfix_str(f"{number}")
            console.tell(f"at {number}")
            console.warn_once("careful")
    console.flush_streams()
    return total


@pytest.mark.parametrize("call", ["write", "flush"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")))
def test_a_stream_that_fails_at_any_moment_ends_nothing_and_the_other_tells_of_it_once(streams, error, call):
    for calls in (0, 1, 2, 7, 50, 173):
        for broken in ("stdout", "stderr"):
            bad, good = Stream(error, call, calls), Stream()
            streams(*((bad, good) if broken == "stdout" else (good, bad)))
            assert talk() == 435
            name = {"stdout": "standard output", "stderr": "standard error"}[broken]
            told = [line for line in good.getvalue().splitlines() if "nothing more can be written" in line]
            assert len(told) == (bad.left < 0) and all(f"to {name} ({console.reason(error)})" in line for line in told)
            assert broken == "stdout" or [f"at {number}" in good.getvalue() for number in range(30)]


def test_both_streams_may_fail_or_be_missing(streams):
    for pair in (
        (Stream(ERRORS[0]), Stream(ERRORS[1])),
        (None, None),
        (None, Stream()),
        (Stream(), None),
        (Stream(ERRORS[0]), None),
    ):
        streams(*pair)
        assert talk() == 435


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1", "utf-16", "no such encoding", None])
def test_text_is_written_in_what_the_stream_can_take(streams, encoding):
    class Text(Stream):
        def write(self, text):
            text.encode(encoding if encoding not in (None, "no such encoding") else "ascii" if encoding else "utf-8")
            return io.StringIO.write(self, text)

    out, err = streams(Text(encoding=encoding), Text(encoding=encoding))
    console.tell(f"{GREEK} plain \udcff")
    with console.bar(range(3), desc=GREEK, mininterval=0) as bar:
        list(bar)
    console.warn_once(GREEK)
    first = GREEK if encoding in ("utf-8", "utf-16", None) else GREEK.encode("ascii", "backslashreplace").decode()
    assert out.getvalue() == f"{first} plain \\udcff\n"
    assert f"warning: {first}\n" in err.getvalue() and "3/3" in err.getvalue()


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_one_line_that_can_be_written(text):
    line = console.one_line(text)
    assert (
        len(line.splitlines()) <= 1
        and line.encode("utf-8") is not None
        and not re.search(r"[\x00-\x1f\x7f-\x9f]", line)
    )
    assert text.isprintable() <= (line == text)


def test_control_characters_do_not_reach_the_terminal_but_lines_and_tabs_stay(streams):
    out, _ = streams(Stream(), Stream())
    console.tell("a\tb\nc\x1b[2J\rd")
    assert out.getvalue() == "a\tb\nc\\x1b[2J\\rd\n"


def test_a_warning_is_one_clean_line_and_said_once(streams):
    out, err = streams(Stream(), Stream())
    for number in range(3):
        console.warn_once("the disk\nis small")
        console.warn_once(f"try {number}", key="tries")
    assert err.getvalue() == "warning: the disk\\nis small\nwarning: try 0\n" and not out.getvalue()


def test_what_is_attempted_gives_its_result_or_none_and_a_reason(streams):
    _, err = streams(Stream(), Stream())
    assert console.attempt("adding", lambda: 1 + 1) == 2
    for _ in range(2):
        assert console.attempt("the picture", lambda: open("/nowhere/at/all")) is None
        assert console.attempt("the sum", lambda: 1 / 0) is None
        assert console.attempt("the list", lambda: next(iter([]))) is None  # an error without a word
    assert err.getvalue() == (
        "warning: the picture: /nowhere/at/all: No such file or directory\nwarning: the sum: division by zero\n"
        "warning: the list: StopIteration\n"
    )
    for end in (KeyboardInterrupt, SystemExit):

        def ending(end=end):
            raise end

        with pytest.raises(end):
            console.attempt("the end", ending)


def test_a_bar_that_cannot_be_drawn_is_left_out_and_the_work_goes_on(streams, monkeypatch):
    _, err = streams(Stream(), Stream())
    assert list(console.bar(range(5), bar_format="{nonsense}", mininterval=0)) == list(range(5))
    assert list(console.bar(range(5), ncols="wide", mininterval=0)) == list(range(5))
    assert err.getvalue().count("warning: no progress bars: ") == 1


def test_in_a_log_a_bar_is_a_line_now_and_then(streams):
    out, err = streams(Stream(), Stream(terminal=False))
    with console.bar(total=1000, initial=200, desc="toy\nrun", unit="step", mininterval=9, line_seconds=0.05) as bar:
        deadline = time.monotonic() + 20
        while not err.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
            bar.set_postfix_str("loss 4.1", refresh=False)
            bar.update(1)
        for _ in console.bar(range(3), desc="nested", leave=False):
            console.tell("a line between")
        bar.update(999 - bar.n)
    lines = err.getvalue().splitlines()
    rate = r"(?:[\d.]+|\d{1,3}(?:,\d{3})+)"
    shape = rf"toy\\nrun: \d+ of 1,000 step \(\d+ %\), {rate} step/s, 00:\d\d so far, \d+:\d\d left, loss 4.1"
    assert len(lines) == 2 and all(re.fullmatch(shape, line) for line in lines), lines
    assert lines[-1].startswith("toy\\nrun: 999 of 1,000 step (100 %)"), "the last line is where it ended"
    assert out.getvalue() == "a line between\n" * 3


def test_work_shorter_than_the_interval_leaves_no_line_in_a_log(streams):
    _, err = streams(Stream(), Stream(terminal=False))
    assert list(console.bar(range(1000), desc="short", mininterval=0)) == list(range(1000))
    assert talk() == 435 and "counting" not in err.getvalue()


@pytest.mark.parametrize(
    "bar, line",
    [
        (
            {"n": 3 * 10**7, "total": 10**9, "unit": "B", "unit_scale": True, "rate": 10**6},
            "30.0MB of 1.00GB (3 %), 1.00MB/s, 00:30 so far, 16:10 left",
        ),
        ({"n": 7, "total": None}, "7 it, 0.233 it/s, 00:30 so far"),
        ({"n": 40, "initial": 40, "total": 80}, "40 of 80 it (50 %), 0 it/s, 00:30 so far"),
        (
            {"n": 9, "total": 4, "rate": 123456.0, "prefix": "held-out: "},
            "held-out: 9 of 4 it (225 %), 123,456 it/s, 00:30 so far",
        ),
        ({"n": 0, "total": 4, "elapsed": 0}, "0 of 4 it (0 %), 0 it/s, 00:00 so far"),
    ],
)
def test_a_bar_in_words(bar, line):
    usual = {
        "initial": 0,
        "unit": "it",
        "unit_scale": False,
        "elapsed": 30,
        "rate": None,
        "postfix": None,
        "prefix": "",
    }
    assert console.in_words(usual | bar) == line


def test_errors_that_a_user_can_act_on():
    assert (
        described(UserError("wrong")) == "wrong"
        and described(ValueError("a bug")) is None
        and described(RuntimeError("a bug")) is None
    )
    assert described(OSError(errno.ENOSPC, "No space left on device", "a.txt")).startswith(
        "a.txt: No space left on device"
    )
    torch_cpu = (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 40000000000 bytes. Error code 12"
    )
    assert described(RuntimeError(torch_cpu)) == "not enough memory: 37.25 GiB could not be had"
    assert (
        described(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU"))
        == "not enough memory: 20.00 MiB could not be had"
    )
    assert (
        described(MemoryError("Unable to allocate 72.8 TiB for an array"))
        == "not enough memory: 72.8 TiB could not be had"
    )
    assert described(MemoryError()) == described(RuntimeError("std::bad_alloc")) == "not enough memory"


def test_a_library_is_called_in_a_thread_with_its_result_and_its_errors():
    assert interruptibly(lambda: 5) == 5
    with pytest.raises(UserError, match="in there"):
        interruptibly(lambda: (_ for _ in ()).throw(UserError("in there")))


# Real processes
# ---------------------------------------------------------------------------------------------------------


def run(body, tmp_path, redirection="", **environment):
    """Run a script whose main is `body` through a shell; it works in `tmp_path`."""
    (tmp_path / "script.py").write_text(MAIN + body, encoding="utf-8")
    return subprocess.run(
        ["bash", "-c", f'"$0" script.py {redirection}; exit ${{PIPESTATUS[0]}}', sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        errors="replace",
        env=ENVIRONMENT | environment,
    )


@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        ">/dev/full",
        "2>/dev/full",
        "&>/dev/full",
        "| head -1",
        "2>&1 | head -1",
        "| true",
    ],
)
def test_the_work_is_done_whatever_becomes_of_the_output(tmp_path, redirection):
    done = run(TALK, tmp_path, redirection)
    assert done.returncode == 0 and (tmp_path / "done").exists()
    assert "Exception" not in done.stderr + done.stdout and "Traceback" not in done.stderr + done.stdout
    if redirection == ">/dev/full":
        assert (
            done.stderr.count("warning: nothing more can be written to standard output (No space left on device)") == 1
        )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_the_work_is_done_whatever_the_encoding(tmp_path, encoding):
    done = run(TALK, tmp_path, PYTHONIOENCODING=f"{encoding}:strict", TQDM_MININTERVAL="nonsense")
    assert done.returncode == 0 and (tmp_path / "done").exists(), done.stderr
    assert "line 199 \\u1f18\\u03bd" in done.stdout and "warning: one\\ntwo\n" in done.stderr


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    done = run('open("number", "w").write(str(open("script.py").fileno()))\nmain()', tmp_path, "<&- >&- 2>&-")
    assert done.returncode == 0 and int((tmp_path / "number").read_text()) > 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_does_not_block_is_waited_for(tmp_path, unbuffered):
    (tmp_path / "script.py").write_text(MAIN + 'console.tell("x" * 300_000)\n    console.tell("end")\nmain()')
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    time.sleep(1)  # the pipe is full by then
    with open(reading) as pipe:
        assert pipe.read() == "x" * 300_000 + "\nend\n"
    assert process.wait(60) == 0 and process.stderr.read() == ""


def test_a_pipe_that_nobody_reads_is_given_up(streams, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE_S", 0.1)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb"), open(writing, "w", encoding="utf-8") as pipe:
        _, err = streams(pipe, Stream())
        for _ in range(3):
            console.tell("x" * 100_000)
        assert (
            err.getvalue() == "warning: nothing more can be written to standard output (nobody reads from the pipe)\n"
        )


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_is_one_line_and_ends_a_loop_of_a_shell_too(tmp_path, presses):
    (tmp_path / "script.py").write_text(MAIN + 'import time; open("started", "w").close(); time.sleep(60)\nmain()')
    loop = subprocess.Popen(
        ["bash", "-c", 'for i in 1 2; do "$0" script.py; done; echo went on', sys.executable],
        cwd=tmp_path,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    for _ in range(presses):
        os.killpg(loop.pid, signal.SIGINT)
    output = loop.communicate(timeout=60)[0]
    assert loop.returncode == -signal.SIGINT and output in ("interrupted\n", "") and (output or presses > 1)


def test_a_run_that_was_stopped_by_ctrl_c_and_saved_ends_as_if_by_it(tmp_path):
    assert run("raise SystemExit(130)\nmain()", tmp_path).returncode == 130
    (tmp_path / "script.py").write_text(MAIN + "raise SystemExit(130)\nmain()")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == -signal.SIGINT and done.stderr == ""


def test_a_mistake_is_one_line_even_with_bytes_in_it_that_are_no_text(tmp_path):
    done = run('raise UserError("a\\npath \\udcff \\x1b[1m")\nmain()', tmp_path, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 1 and done.stderr == "error: a\\npath \\udcff \\x1b[1m\n"


def test_only_the_console_talks_to_the_user():
    """Whatever else prints would not be safe from a stream that fails."""
    talking = re.compile(r"(?<![\w.])print\(|\btqdm\b|warnings\.warn|sys\.std(out|err)\.write")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("modules/**/*.py")]:
        found = talking.search(path.read_text(encoding="utf-8"))
        assert not found or path.name == "console.py", f"{path}: {found[0]}"
