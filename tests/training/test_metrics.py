"""The metrics file, whole or damaged; Weights & Biases without a network, without an answer, without a login."""

import json
import os
import random
import re
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.system import console
from modules.training.metrics import WANDB_ID_LENGTH, WANDB_REFUSES, Metrics, accepted, read_metrics
from tests.conftest import ROOT


def entry(step, split="train", **changes):
    return {
        "step": step,
        "split": split,
        "loss": 4.5 - 0.01 * step,
        "lr": 3e-4,
        "tokens": step * 256,
        "tokens_per_s": 1000,
    } | changes


ENTRIES = [entry(step, split) for step in range(5, 45, 5) for split in ("train", "valid")]
LINES = [json.dumps(each).encode() for each in ENTRIES]
DAMAGE = [
    b"",
    b"{",
    b"[1, 2]",
    b"null",
    b"12",
    b"\x00\xff\xfe binary",
    "é".encode("latin-1"),
    b"[" * 100_000,
    b"{" + b'"step":' * 5,
    b"1" * 10_000,
    *(
        json.dumps(entry(15) | changes).encode()
        for changes in (
            {"loss": "4.2"},
            {"loss": None},
            {"loss": float("nan")},
            {"loss": float("inf")},
            {"step": -1},
            {"step": 1.5},
            {"step": True},
            {"step": 10**30},
            {"split": "test"},
            {"split": 3},
            {"lr": float("nan")},
            {"tokens": []},
            {"tokens": -5},
            {"tokens_per_s": float("-inf")},
            {"tokens_per_s": {}},
        )
    ),
    *(
        json.dumps({key: value for key, value in entry(15).items() if key != left_out}).encode()
        for left_out in entry(15)
    ),
    json.dumps(entry(15)).encode().replace(b"4.35", b"1e400"),
]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(console, "_warned", set())


def metrics_at(path, step=40):
    return Metrics(path, step, "project", "run", path.parent.parent, {})


def written(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_what_is_written_is_read_and_a_resume_drops_the_steps_after_it(tmp_path):
    path = tmp_path / "metrics" / "run.jsonl"
    metrics = metrics_at(path, 0)
    for number, each in enumerate(ENTRIES, start=1):
        metrics.write(each)
        assert read_metrics(path) == ENTRIES[:number], "on the disk at once"
        metrics.publish(each, "a text")
    metrics.close()
    metrics_at(path, 20).close()
    assert read_metrics(path) == [each for each in ENTRIES if each["step"] <= 20]
    metrics_at(path, 0).close()
    assert path.read_bytes() == b""


def test_a_last_line_that_was_cut_is_dropped(tmp_path, capsys):
    path = written(tmp_path / "run.jsonl", LINES)
    for cut in (1, 10, len(LINES[-1])):
        path.write_bytes(b"".join(line + b"\n" for line in LINES)[:-cut])
        assert read_metrics(path) == ENTRIES[:-1]
    assert capsys.readouterr().err == ""
    metrics = metrics_at(path)
    metrics.write(ENTRIES[-1])
    metrics.close()
    assert read_metrics(path) == ENTRIES and not list(tmp_path.glob("*.damaged*"))


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_is_left_out_with_a_warning_and_kept_aside_on_resuming(tmp_path, capsys, damage):
    path = written(tmp_path / "run.jsonl", [*LINES[:4], damage, *LINES[4:]])
    before = path.read_bytes()
    for _ in range(2):
        assert read_metrics(path) == ENTRIES
    told = capsys.readouterr().err
    assert (
        told.startswith(f"warning: {path}: line 5")
        and told.endswith(": left out\n")
        and told.count("\n") == 1
        and len(told) < 1000
    )
    assert path.read_bytes() == before

    metrics_at(path).close()
    aside = path.with_name("run.jsonl.damaged")
    assert read_metrics(path) == ENTRIES and aside.read_bytes() == before
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {path}: line 5") and told.endswith(
        f": 1 such line(s) left out; the file as it was is {aside}\n"
    )
    assert told.count("\n") == 1
    metrics_at(path).close()
    assert capsys.readouterr().err == "" and len(list(tmp_path.iterdir())) == 2, "told at one restart, not at every"


def test_a_file_kept_aside_is_never_replaced(tmp_path):
    path = tmp_path / "run.jsonl"
    for number, name in enumerate(("run.jsonl.damaged", "run.jsonl.damaged2", "run.jsonl.damaged3")):
        written(path, [*LINES, b"junk %d" % number])
        metrics_at(path).close()
        assert f"junk {number}" in (tmp_path / name).read_text()
    assert "junk 0" in (tmp_path / "run.jsonl.damaged").read_text()


def test_forty_random_mutations_lose_no_line_that_is_whole(tmp_path):
    draw = random.Random(0)
    whole = b"".join(line + b"\n" for line in LINES)
    for _ in range(40):
        data = bytearray(whole)
        start = draw.randrange(len(data))
        kind, length = draw.choice(["flip", "cut", "insert", "zero"]), draw.randrange(1, 60)
        if kind == "flip":
            data[start] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "insert":
            data[start:start] = draw.randbytes(length)
        else:
            data[start : start + length] = bytes(len(data[start : start + length]))
        path = tmp_path / "run.jsonl"
        path.write_bytes(data)
        intact = [each for each, line in zip(ENTRIES, LINES, strict=True) if line in data.split(b"\n")[:-1]]
        for found in (read_metrics(path), metrics_at(path).close() or read_metrics(path)):
            assert [each for each in found if each in intact] == intact and len(intact) >= len(ENTRIES) - 2
            assert all(set(each) >= set(ENTRIES[0]) for each in found)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "run.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        metrics_at(tmp_path / "run.jsonl")
    assert list(tmp_path.iterdir()) == [tmp_path / "run.jsonl"]


def test_a_full_disk_is_an_error_with_the_path_and_leaves_whole_lines(tmp_path):
    import resource

    path = tmp_path / "run.jsonl"
    metrics = metrics_at(path, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * len(LINES[0])), limits[1]))
    try:
        metrics.write(ENTRIES[0])
        metrics.write(ENTRIES[1])
        with pytest.raises(OSError, match=re.escape(str(path))):
            metrics.write(ENTRIES[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"".join(line + b"\n" for line in LINES[:2])
    metrics.write(ENTRIES[2])
    metrics.close()
    assert read_metrics(path) == ENTRIES[:3]


# Weights & Biases
# -------------------------------------------------------------------------------------------------------


@given(
    st.text(st.characters(exclude_categories=[]), max_size=200),
    st.text(st.characters(exclude_categories=[]), max_size=200),
)
def test_ids_are_what_wandb_takes_and_differ_where_names_do(one, other):
    ids = [accepted(f"project-{name}", WANDB_ID_LENGTH) for name in (one, other)]
    for each in ids:
        assert 0 < len(each.encode()) <= WANDB_ID_LENGTH and each == each.strip() and not WANDB_REFUSES.search(each)
    assert (ids[0] == ids[1]) == (one == other)


def test_short_names_keep_their_ids_and_long_ones_do_not_become_one():
    assert accepted("project-mini_forward_seed0", WANDB_ID_LENGTH) == "project-mini_forward_seed0"
    names = [
        f"project-{'long' * 20}_{direction}_seed{seed}" for direction in ("forward", "backward") for seed in range(5)
    ]
    assert len({accepted(name, WANDB_ID_LENGTH) for name in names}) == 10


LOG = """
import os, signal, sys, time
from pathlib import Path
from modules.training import metrics
from modules.system.errors import one_line_errors
metrics.WANDB_START_S, metrics.WANDB_END_S = 2, 2 if "hang" in sys.argv else 60
@one_line_errors
def main():
    began = time.monotonic()
    log = metrics.Metrics(Path("runs/metrics/run.jsonl"), 0, "project", "run", Path("runs"), {"a": 1})
    def write(steps):
        for step in steps:
            entry = {"step": step, "split": "train", "loss": 1.0, "lr": 1.0, "tokens": 1, "tokens_per_s": 1}
            log.write(entry)
            log.publish(entry, "a text")
    write(range(10))
    if "hang" in sys.argv:
        children = lambda: [int(pid) for task in os.listdir("/proc/self/task")
                            for pid in open(f"/proc/self/task/{task}/children").read().split()]
        while not children():
            time.sleep(0.05)
        time.sleep(1)
        for pid in children():
            os.kill(pid, signal.SIGSTOP)
        write(range(10, 3000))
    log.close()
main()
"""


def log_to_wandb(tmp_path, *arguments, **environment):
    """Log to W&B in a process of its own, which never sees the user's login or any network but this machine's."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    nowhere = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-c", LOG, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=plain | nowhere | environment,
    )


def recorded(tmp_path):
    """The kinds of W&B's records that hold something."""
    return sorted(
        path.parent.name.split("-")[0]
        for path in tmp_path.glob("runs/wandb/*run-*/*.wandb")
        if not path.parent.is_symlink()
    )


def test_wandb_without_a_network_is_recorded_offline(tmp_path):
    done = log_to_wandb(tmp_path, WANDB_API_KEY="0123456789" * 4, WANDB_MODE="online")
    assert done.returncode == 0 and "offline" in recorded(tmp_path)
    told = r"warning: Weights & Biases cannot be reached \(.*\); this run is recorded offline: wandb sync .*\n"
    assert re.fullmatch(told, done.stderr), done.stderr
    assert len(read_metrics(tmp_path / "runs" / "metrics" / "run.jsonl")) == 10


def test_wandb_whose_server_does_not_answer_is_recorded_offline(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = log_to_wandb(
            tmp_path, WANDB_API_KEY="0123456789" * 4, WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}"
        )
    assert done.returncode == 0 and "offline" in recorded(tmp_path) and done.stderr.count("\n") == 1, done.stderr


def test_a_login_in_a_file_of_settings_counts(tmp_path):
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text(f"[default]\napi_key = {'0123456789' * 4}\n")
    done = log_to_wandb(tmp_path)
    assert done.returncode == 0 and "cannot be reached" in done.stderr, done.stderr  # it was tried


def test_wandb_without_a_login_is_offline_in_silence_and_a_bad_key_is_told(tmp_path):
    done = log_to_wandb(tmp_path)
    assert done.returncode == 0 and done.stderr == "" and recorded(tmp_path) == ["offline"]
    done = log_to_wandb(tmp_path, WANDB_API_KEY="short")
    assert done.returncode == 0 and re.fullmatch(
        r"warning: the login of Weights & Biases: .*WANDB_API_KEY.*\n", done.stderr
    ), done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_a_wandb_process_that_hangs_holds_nothing_up(tmp_path):
    done = log_to_wandb(tmp_path, "hang")
    assert done.returncode == 0 and len(read_metrics(tmp_path / "runs" / "metrics" / "run.jsonl")) == 3000
    assert re.fullmatch(
        r"warning: Weights & Biases does not work \(the metrics are in .*\): no answer for 4 s\n", done.stderr
    ), done.stderr
