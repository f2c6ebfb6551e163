"""Runs side by side: failures are told by their errors, and a stop reaches every process. The scripts here are no
trainings, which would take seconds."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from modules.config import parse_config
from modules.system.errors import UserError
from modules.training.placement import Place, Placement
from modules.training.run import Request
from modules.training.side_by_side import train_side_by_side
from tests.processes import is_running
from tests.toy import config_dict

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
name = Path(sys.argv[-1]).stem
here = Path(json.loads(Path(sys.argv[-1]).read_text())["training_params"]["state_save_loc"])
(here / f"{name}.pid").write_text(str(os.getpid()))
"""


@pytest.fixture
def train(tmp_path):
    """Trains runs of these names, whose script goes on as given; at most three at a time."""
    (tmp_path / "runs").mkdir()

    def train(names, body: str, jobs: int = 3, device: str | None = "cpu", plan: Placement | None = None) -> int:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + body)
        configs = [parse_config(config_dict(tmp_path), name).with_model("gpt") for name in names]
        return train_side_by_side(configs, Request("p"), device, jobs, script, plan)

    return train


def pids(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while (
        len(found := [int(text) for path in (folder / "runs").glob("*.pid") if (text := path.read_text())]) < count
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    return found


def test_each_that_fails_is_told_with_its_own_error_and_the_rest_is_not_begun(train, tmp_path):
    log = tmp_path / "runs" / "p" / "logs" / "one.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: of another day\n")
    with pytest.raises(UserError) as caught:
        train(
            ["one", "two", "three", "four"],
            """
deadline = time.monotonic() + 30
while len(list(here.glob("*.pid"))) < 3 and time.monotonic() < deadline: time.sleep(0.01)
if name == "one": os.kill(os.getpid(), signal.SIGABRT)
if name == "two":
    print("\\rtwo:  10%|#   | 4/40 [00:01<00:09]", end="")
    print("\\nerror: two has no room\\n\\rtwo:  10%|#   | 4/40 [00:01<00:09]", end="", flush=True)
    raise SystemExit(1)
time.sleep(60)
""",
        )
    line = str(caught.value)
    assert "another day" not in line and "%|" not in line and "\n" not in line
    told = {part.split()[0]: part for part in line.split("; and ")}
    assert told.keys() <= {"one", "two"}, "three was asked to stop, and four not begun"
    assert "was killed by SIGABRT" in told.get("one", "was killed by SIGABRT")
    assert told.get("two", "error: two has no room").count("error: two has no room") == 1
    assert not any(is_running(pid) for pid in pids(tmp_path, 3)) and not (tmp_path / "runs" / "four.pid").exists()


@pytest.mark.parametrize("ignores, signals", [(False, 1), (True, 2)])
def test_a_signal_lets_them_save_and_a_second_ends_them(train, tmp_path, ignores, signals):
    """The default handler dies of the signal, as a script does that is still importing."""

    def ask():
        pids(tmp_path, 2)
        time.sleep(0.3)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    asking = threading.Thread(target=ask)
    asking.start()
    handler = "signal.SIG_IGN" if ignores else "signal.SIG_DFL"
    body = SCRIPT.strip().splitlines()[-1]
    script = f"signal.signal(signal.SIGINT, {handler})\n{body}\ntime.sleep(60)\n"
    assert train(["one", "two", "three"], script, jobs=2) == 128 + signal.SIGINT
    asking.join()
    assert not any(is_running(pid) for pid in pids(tmp_path, 2)) and not (tmp_path / "runs" / "three.pid").exists()


def test_an_error_of_ours_stops_what_runs(train, tmp_path):
    """As a full disk does when the next log is made; here a folder has its name."""
    (tmp_path / "runs" / "p" / "logs" / "three.log").mkdir(parents=True)
    with pytest.raises(OSError, match="three.log"):
        train(["one", "two", "three"], '(time.sleep(60) if name == "one" else None)\n', jobs=2)
    assert not any(is_running(pid) for pid in pids(tmp_path, 1))


def test_a_run_that_cannot_save_when_it_is_asked_to_stop_is_a_failure(train, tmp_path):
    with pytest.raises(
        UserError,
        match=r"one failed: error: disk full .*; and two failed: |two failed: .*; and one failed: error: disk full",
    ):
        train(
            ["one", "two"],
            """
def handler(*_):
    print("error: disk full", flush=True)
    raise SystemExit(1)
signal.signal(signal.SIGTERM, handler)
(here / f"{name}.ready").touch()
deadline = time.monotonic() + 30
if name == "two":
    while not (here / "one.ready").exists() and time.monotonic() < deadline: time.sleep(0.01)
    raise SystemExit(2)
time.sleep(60)
""",
        )


def test_each_run_has_a_gpu_of_its_own(train, tmp_path):
    """The first ends at once, and its GPU is the third's."""
    gpus = Place("cuda:0", 10.0, 1), Place("cuda:1", 10.0, 1)
    plan = Placement(gpus, dict.fromkeys(["one", "two", "three"], 6.0), 2, "")
    body = """
(here / f"{name}.device").write_text(sys.argv[sys.argv.index("-d") + 1])
deadline = time.monotonic() + 30
if name == "two":
    while not (here / "three.device").exists() and time.monotonic() < deadline: time.sleep(0.01)
"""
    assert train(["one", "two", "three"], body, device=None, plan=plan) == 0
    devices = [(tmp_path / "runs" / f"{name}.device").read_text() for name in ("one", "two", "three")]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_run_that_dies_of_memory_is_tried_again_alone_at_the_end(train, tmp_path, capfd):
    """One is killed as the kernel kills, one tells what torch told it; both have room when they are alone."""
    body = """
before = here / f"{name}.tries"
tries = int(before.read_text()) if before.exists() else 0
before.write_text(str(tries + 1))
others = [other for other in here.glob("*.at_work")]
(here / f"{name}.at_work").touch()
if tries == 0 and name == "one": (here / "one.at_work").unlink(), os.kill(os.getpid(), signal.SIGKILL)
if tries == 0 and name == "two":
    print("error: cuda:0 is out of memory (tried to allocate 2.00 GiB); a smaller batch_size needs less", flush=True)
    (here / "two.at_work").unlink()
    raise SystemExit(1)
if tries: assert not others, others
time.sleep(0.2)
(here / f"{name}.at_work").unlink()
"""
    assert train(["one", "two", "three", "four"], body) == 0
    tries = {name: int((tmp_path / "runs" / f"{name}.tries").read_text()) for name in ("one", "two", "three", "four")}
    assert tries == {"one": 2, "two": 2, "three": 1, "four": 1}
    said = capfd.readouterr().err
    for name in ("one", "two"):
        assert f"{name}: died for lack of memory; it is tried again at the end, alone" in said
        assert f"{name}: tried again, alone" in said


def test_a_second_death_of_memory_is_a_failure(train, tmp_path):
    with pytest.raises(UserError, match=r"^one failed: was killed by SIGKILL, as the kernel does.*one\.log\)$"):
        train(["one", "two"], 'if name == "one": os.kill(os.getpid(), signal.SIGKILL)\n', jobs=2)


def test_a_lone_run_that_dies_of_memory_is_not_tried_again(train, tmp_path, capfd):
    with pytest.raises(UserError, match="not enough memory"):
        train(["one"], 'print("error: not enough memory", flush=True); raise SystemExit(1)\n', jobs=2)
    assert "tried again" not in capfd.readouterr().err
