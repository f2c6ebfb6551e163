"""Processes end with who started them, and say why they ended."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from modules.system import children
from modules.system.children import LAUNCHER, awaited, how_it_ended, parent_of, signals_kept, status_of
from modules.training.parallel import Processes
from modules.training.side_by_side import error_in
from tests.processes import children_of, is_running
from tests.toy import ROOT

CHILD = """
import time
from modules.system.children import end_with_launcher
end_with_launcher()
print("asked", flush=True)
time.sleep(60)
"""
LAUNCHING = f"""
import os, subprocess, sys
from modules.system.children import start_child
child = start_child([sys.executable, "-c", {CHILD!r}], os.environ | {{}}, stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
child.wait()
"""


def python(code: str, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a run asks between its steps")
def test_a_child_ends_when_its_launcher_is_killed():
    launcher = python(LAUNCHING)
    pid, said = launcher.stdout.readline().split()
    assert said == "asked" and is_running(int(pid))
    launcher.kill()
    assert ends(int(pid))
    launcher.communicate()


def test_a_child_whose_launcher_died_before_it_could_ask_ends_at_once():
    child = python(CHILD, **{LAUNCHER: str(os.getppid())})  # somebody, but not its parent
    assert child.communicate(timeout=20)[0] == "" and child.returncode == 128 + signal.SIGTERM


def test_who_was_not_launched_goes_on(monkeypatch):
    monkeypatch.delenv(LAUNCHER, raising=False)
    children.end_with_launcher()
    assert not children.launcher_is_gone()
    monkeypatch.setenv(LAUNCHER, "no number")
    assert children.launcher_is_gone()


def test_statuses_are_those_of_a_shell():
    assert (status_of(0), status_of(3), status_of(-signal.SIGKILL)) == (0, 3, 137)
    assert how_it_ended(3) == "ended with status 3"
    assert "SIGKILL" in how_it_ended(-signal.SIGKILL) and "memory" in how_it_ended(-signal.SIGKILL)
    assert how_it_ended(-signal.SIGSEGV) == "was killed by SIGSEGV" and how_it_ended(-99) == "was killed by signal 99"


def test_signals_are_kept_and_the_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals_kept(signal.SIGTERM) as came:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == before


# A lock that an orphan holds
# --------------------------------------------------------------------------------------------


def test_only_the_lock_of_an_orphan_is_worth_waiting_for():
    now = time.monotonic()
    me, parent = str(os.getpid()), str(os.getppid())
    assert parent_of(me) == parent
    assert not awaited(f"{me} {parent}", now), "its launcher lives"
    assert not awaited(f"{me} ", now) and not awaited("", now) and not awaited("junk \0 junk", now), (
        "nobody launched it, or nobody knows"
    )
    assert awaited(f"{me} 999999999", now), "somebody launched it who is its parent no more"
    assert not awaited(f"{me} 999999999", now - children.ORPHAN_SECONDS - 1)


HOLDER = """
import sys, time
from pathlib import Path
import torch
from modules.training.interruption import only_run
from modules.training.parallel import Processes
with only_run(Path(sys.argv[1]), Processes(0, 1, torch.device("cpu"))):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_run_waits_for_the_orphan_that_holds_its_lock_and_names_others(tmp_path):
    import torch

    from modules.system.errors import UserError
    from modules.training.interruption import only_run

    here, state = Processes(0, 1, torch.device("cpu")), tmp_path / "toy.state"
    for launcher, seconds in (("999999999", 2), ("", 60)):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(state), str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {LAUNCHER: launcher},
        )
        assert holder.stdout.readline() == "held\n"
        if launcher:
            with only_run(state, here):
                assert holder.wait(timeout=20) == 0
        else:
            with (
                pytest.raises(UserError, match=rf"another process is training this run \({holder.pid}\)"),
                only_run(state, here),
            ):
                pass
        holder.kill()
        holder.communicate()


# What a log says
# --------------------------------------------------------------------------------------------------------

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
    f()
    ^^^
ValueError: one
more of it

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "y.py", line 2, in f
    g()
RuntimeError: two
"""
BAR = "toy:  10%|#         | 4/40 [00:01<00:09,  4.00step/s]"


@pytest.mark.parametrize(
    "output, expected",
    [
        ("", None),
        (f"\r{BAR}\r{BAR}", None),
        (f"\r{BAR}\r{BAR}\nerror: no room\n", "error: no room"),
        (f"\r{BAR}error: of the bar\rerror: told after it\n\r{BAR}", "error: told after it"),
        ("error: first\nerror: last\nwarning: something\n", "error: last"),
        (f"reading forward\n{TRACEBACK}\r{BAR}\r", "RuntimeError: two"),
        ("Traceback (most recent call last):\n  File", None),
    ],
)
def test_a_log_is_quoted_by_its_error_and_not_by_a_bar(output, expected):
    assert error_in(output) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a run asks between its steps")
@pytest.mark.slow
def test_a_measurement_that_is_killed_takes_its_trainings_along_and_can_be_started_again_at_once(tmp_path):
    from tests.toy import PROJECT, start_script, write_config

    config = write_config(
        tmp_path,
        training_params__steps_to_train=100_000,
        training_params__save_every=50_000,
        training_params__backup_every=50_000,
    )
    arguments = ("measure_arrow.py", config, "--jobs", 2, "-d", "cpu", "-p", PROJECT)
    folder = tmp_path / "runs" / PROJECT

    def both(done, of: subprocess.Popen) -> None:
        while of.poll() is None and not all(done(f"toy_{direction}_seed0") for direction in ("forward", "backward")):
            time.sleep(0.05)

    process = start_script(*arguments)
    both(lambda name: (file := folder / "metrics" / f"{name}.jsonl").exists() and file.stat().st_size, process)
    trainings = children_of(process.pid, at_least=2)
    process.kill()
    process.communicate()
    again = start_script(*arguments)
    both(
        lambda name: len(re.findall(r"reading \w+, steps [1-9]", (folder / "logs" / f"{name}.log").read_text())) == 1,
        again,
    )
    assert not any(is_running(training) for training in trainings), "they saved and stopped, and were waited for"
    again.terminate()
    output = again.communicate(timeout=60)[0]
    assert again.returncode == 128 + signal.SIGTERM, output
