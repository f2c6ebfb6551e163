"""Launching processes: what they are told, and how all end when one does or a signal comes. The children here are no
trainings, which would take seconds."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from modules.system.errors import UserError
from modules.system.processes import Process
from modules.training import parallel
from modules.training.parallel import device_name_of, joined
from tests.processes import children_of, is_running
from tests.toy import ROOT

LAUNCHED = """
import os, signal, sys, time
rank = int(os.environ.get("RANK", -1))
if rank < 0:
    sys.path.insert(0, {root!r})
    from modules.training.parallel import launch
    raise SystemExit(launch(2, "cpu", 0))
{child}
"""


def launcher(folder, child: str) -> subprocess.Popen:
    script = folder / "launched.py"
    script.write_text(LAUNCHED.format(root=str(ROOT), child=child))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def test_they_meet_at_a_port_that_is_theirs(tmp_path):
    process = launcher(
        tmp_path,
        """
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
store, rank, count = next(rendezvous("env://"))
store.set(f"from {rank}", str(rank))
other = store.get(f"from {1 - rank}").decode()
os.write(1, f"{rank} of {count}: {other}\\n".encode())
""",
    )
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert sorted(output.splitlines()) == ["0 of 2: 1", "1 of 2: 0"]


@pytest.mark.parametrize(
    "child, status, told",
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)",
            137,
            "error: process 1 of 2 was killed by SIGKILL, as the kernel does where memory is short",
        ),
        ("raise SystemExit(3) if rank else time.sleep(60)", 3, ""),
    ],
)
def test_the_status_is_that_of_the_first_that_failed(tmp_path, child, status, told):
    process = launcher(tmp_path, child)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and told in errors and len(errors.splitlines()) == bool(told), errors


def test_a_signal_before_they_train_ends_all_at_once(tmp_path):
    """One is not ready to save and stop, and dies of it; the other would wait for it for ever."""
    process = launcher(
        tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN) if rank else None; os.write(1, b'up'); time.sleep(60)"
    )
    assert process.stdout.read(4) == "upup"
    children = children_of(process.pid, at_least=2)
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not any(is_running(child) for child in children)
    process.communicate()


@pytest.mark.parametrize(
    "child, signals, status, told",
    [
        # The others are well; the one that writes could not.
        (
            """
def handler(number, _frame):
    if rank == 0: print("error: disk full", file=sys.stderr, flush=True)
    os._exit(1 if rank == 0 else 128 + number)
signal.signal(signal.SIGTERM, handler)
""",
            [signal.SIGTERM],
            1,
            "error: disk full",
        ),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", [signal.SIGINT] * 2, 130, ""),
    ],
)
def test_a_signal_lets_them_save_and_their_statuses_count(tmp_path, child, signals, status, told):
    process = launcher(tmp_path, f"{child}\nos.write(1, b'up'); time.sleep(60)")
    assert process.stdout.read(4) == "upup"
    children = children_of(process.pid, at_least=2)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.strip() == told
    assert not any(is_running(pid) for pid in children)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they ask between steps")
def test_they_stop_when_their_launcher_is_killed(tmp_path):
    process = launcher(
        tmp_path,
        f"""
sys.path.insert(0, {str(ROOT)!r})
from modules.system.children import end_with_launcher
end_with_launcher()
os.write(1, b"up")
time.sleep(60)
""",
    )
    assert process.stdout.read(4) == "upup"
    children = children_of(process.pid, at_least=2)
    process.kill()
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(child) for child in children)
    process.communicate()


# The environment of a launch
# --------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        *parallel.RENDEZVOUS,
        "TORCHELASTIC_USE_AGENT_STORE",
    ):
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, "but there is no MASTER_ADDR and no MASTER_PORT by which they could meet"),
        ({"MASTER_ADDR": "127.0.0.1"}, "but there is no MASTER_PORT by"),
        (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"},
            "expected MASTER_PORT to be an integer of 0 to 65,535, found 'http'",
        ),
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "65536"}, "expected MASTER_PORT"),
    ],
)
def test_a_launch_without_its_companions_is_refused(launched, variables, expected):
    launched(RANK="0", WORLD_SIZE="2", **variables)
    with pytest.raises(UserError, match=expected), joined("cpu"):
        pass


def test_a_rank_alone_trains_alone(launched):
    launched(RANK="5")
    with joined("cpu") as processes:
        assert (processes.rank, processes.count, processes.device) == (0, 1, torch.device("cpu"))


def test_a_port_that_is_taken_is_told_in_one_line(launched):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        launched(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken.getsockname()[1]))
        with (
            pytest.raises(UserError, match="process 0 of 1 cannot meet the others at 127.0.0.1:") as caught,
            joined("cpu"),
        ):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, local_rank, expected",
    [(None, 1, "cuda:1"), ("cuda", 1, "cuda:1"), ("cpu", 1, "cpu"), (None, 2, None), ("cuda:0", 0, None)],
)
def test_each_process_has_a_gpu_of_its_own(name, local_rank, expected):
    process = Process(local_rank, 4, 4, local_rank, True)
    if expected:
        assert device_name_of(process, name, n_gpus=2) == expected
    else:
        with pytest.raises(
            UserError,
            match="no GPU for the process of LOCAL_RANK 2: there are 2"
            if name is None
            else "expected no number of a device for 4 processes",
        ):
            device_name_of(process, name, n_gpus=2)


def test_without_gpus_the_processes_share_the_cpu():
    assert device_name_of(Process(1, 2, 2, 1, True), None, n_gpus=0) == "cpu"


def test_more_processes_than_gpus_are_refused_before_they_are_started():
    with pytest.raises(UserError, match="--nproc 3: one process drives one GPU, and there are 2"):
        parallel.launch(3, None, n_gpus=2)
