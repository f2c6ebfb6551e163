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
from modules.training import side_by_side
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
def train(tmp_path, monkeypatch):
    """Trains runs of these names, whose script goes on as given; at most three at a time."""
    (tmp_path / "runs").mkdir()

    def train(names, body: str, jobs: int = 3) -> int:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT + body)
        monkeypatch.setattr(side_by_side, "SCRIPTS", {"gpt": str(script)})
        configs = [parse_config(config_dict(tmp_path), name).with_model("gpt") for name in names]
        return train_side_by_side(configs, Request("p"), "cpu", jobs)

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
if name == "one": os.kill(os.getpid(), signal.SIGKILL)
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
    assert "was killed by SIGKILL, as the kernel does where memory is short" in told.get(
        "one", "was killed by SIGKILL, as the kernel does where memory is short"
    )
    assert told.get("two", "error: two has no room").count("error: two has no room") == 1
    assert not any(is_running(pid) for pid in pids(tmp_path, 3)) and not (tmp_path / "runs" / "four.pid").exists()


@pytest.mark.parametrize("ignores, signals", [(False, 1), (True, 2)])
def test_a_signal_lets_them_save_and_a_second_ends_them(train, tmp_path, ignores, signals):
    """The default handler dies of SIGTERM, as a script does that is still importing."""

    def ask():
        pids(tmp_path, 2)
        time.sleep(0.3)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    asking = threading.Thread(target=ask)
    asking.start()
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if ignores else ""
    body = SCRIPT.strip().splitlines()[-1]
    assert train(["one", "two", "three"], f"{ignore}{body}\ntime.sleep(60)\n", jobs=2) == 128 + signal.SIGTERM
    asking.join()
    assert not any(is_running(pid) for pid in pids(tmp_path, 2)) and not (tmp_path / "runs" / "three.pid").exists()


def test_an_error_of_ours_stops_what_runs(train, tmp_path, monkeypatch):
    """As a full disk does when the next log is made."""
    start = side_by_side.start

    def no_room(config, *rest):
        if config.name == "two":
            pids(tmp_path, 1)
            raise OSError(28, "No space left on device", "two.log")
        return start(config, *rest)

    monkeypatch.setattr(side_by_side, "start", no_room)
    with pytest.raises(OSError, match="two.log"):
        train(["one", "two"], "time.sleep(60)\n")
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
