"""Which process this is, by an environment that may be anything; and how much of the machine it has."""

import math
import os
from pathlib import Path

import pytest

from modules.system import console, processes
from modules.system.errors import UserError
from modules.system.processes import Process, available_cores, control_groups, cores_of_quota, this_process

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables and no others of a launch."""

    def set_to(**variables):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        console._warned.clear()

    return set_to


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, Process()),
        ({"WORLD_SIZE": "3", "LOCAL_RANK": "2"}, Process()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Process(0, 1, 1, 0, True)),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, Process(2, 4, 2, 0, True)),
    ],
)
def test_a_launch_is_a_rank_with_a_world(environment, variables, expected):
    environment(**variables)
    assert this_process() == expected


def test_a_rank_alone_is_no_launch_and_said_once(environment, capsys):
    environment(RANK="3")
    assert this_process() == this_process() == Process()
    assert capsys.readouterr().err.count("warning: RANK is 3 in the environment, but there is no WORLD_SIZE") == 1


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "expected RANK to be an integer of 0 to .*found 'x'"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "expected RANK"),
        ({"RANK": "0", "WORLD_SIZE": "1e3"}, "expected WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "expected RANK"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5_000}, "expected WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK below WORLD_SIZE, found RANK 2 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK below WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "one"}, "expected LOCAL_RANK"),
    ],
)
def test_a_launch_that_contradicts_itself_is_refused(environment, variables, expected):
    environment(**variables)
    with pytest.raises(UserError, match=expected) as caught:
        this_process()
    assert len(str(caught.value)) < 200


# The machine
# ------------------------------------------------------------------------------------------------------------


def groups(root: Path, membership: str, **files: str) -> Path:
    """A file system with control groups: `files` are paths below sys/fs/cgroup with __ for the slash."""
    for name, text in {
        "proc/self/cgroup": membership,
        **{f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in files.items()},
    }.items():
        name = name.removesuffix("_max") + ".max" if name.endswith("_max") else name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "membership, files, expected",
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "max 100000\n"}, math.inf),
        (
            "0::/a/b\n",
            {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "400000 100000\n", "cpu_max": "50000 100000\n"},
            1,
        ),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct__cpu.cfs_quota_us": "300000\n", "cpu,cpuacct__cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("1:cpu:/\n0::/\n", {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}, math.inf),
        ("", {}, math.inf),
        ("junk\n\n::::\n", {"cpu_max": "junk\n"}, math.inf),
    ],
)
def test_a_quota_of_time_is_so_many_cores(tmp_path, membership, files, expected):
    assert cores_of_quota(groups(tmp_path, membership, **files)) == expected


def test_no_more_cores_than_this_process_may_run_on(monkeypatch):
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(processes, "cores_of_quota", lambda: 1)
    assert available_cores() == 1


def test_without_control_groups_there_are_none(tmp_path):
    assert control_groups("cpu", tmp_path) == []
