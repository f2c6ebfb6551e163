"""Processes and cores: which of several processes this is, and how much of the machine it may use. Imports nothing
heavy."""

import math
import os
from pathlib import Path
from typing import NamedTuple

from modules.system.console import warn_once
from modules.system.errors import UserError


class Process(NamedTuple):
    """Which of how many processes this is; as torchrun says in the environment."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    local_rank: int = 0
    launched: bool = False


def this_process() -> Process:
    """This process among those that torchrun or train_parallel.py launched; the only one where none did.

    A launch is RANK together with WORLD_SIZE. Some clusters set RANK alone, in every job: that is said once, and is no
    launch. Raises UserError where the variables contradict themselves.
    """
    if "RANK" not in os.environ:
        return Process()
    if "WORLD_SIZE" not in os.environ:
        warn_once(
            f"RANK is {os.environ['RANK']} in the environment, but there is no WORLD_SIZE: taken for one process that "
            "nobody launched. A launch of several sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as "
            "torchrun does"
        )
        return Process()
    rank, world_size, local_world_size, local_rank = (
        integer_variable(name, default)
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if rank >= world_size:
        raise UserError(f"environment: expected RANK below WORLD_SIZE, found RANK {rank} and WORLD_SIZE {world_size}")
    return Process(rank, world_size, max(1, local_world_size), local_rank, launched=True)


def integer_variable(name: str, default: int | None = None, most: int = 2**31 - 1) -> int:
    """An environment variable that must be an integer of 0 to `most`. UserError where it is not, or has no default and
    is missing."""
    text = os.environ.get(name, default)
    try:
        value = int(str(text))
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise UserError(
            f"environment: expected {name} to be an integer of 0 to {most:,}, found "
            f"{'none' if text is None else repr(text)[:40]}"
        )
    return value


def available_cores() -> int:
    """Cores this process may use: a container may allow fewer than the machine has, by name (affinity) or by time (a
    quota)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(cores, cores_of_quota())))


def cores_of_quota(root: Path = Path("/")) -> float:
    """Cores that the control groups of this process give it time for, rounded up; infinite where none limits it."""
    cores = math.inf
    for group in control_groups("cpu", root):
        quota, period = (*limits(group / "cpu.max"), 1.0)[:2]
        cores = min(
            cores, quota / period, limits(group / "cpu.cfs_quota_us")[0] / limits(group / "cpu.cfs_period_us")[0]
        )
    return cores if math.isinf(cores) else math.ceil(cores)


def control_groups(controller: str, root: Path = Path("/")) -> list[Path]:
    """The folders of this process's control groups for "cpu" or "memory", of either version, and of those above; none
    outside of Linux."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    folders = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers or controller in controllers.split(","):  # version 2 has one group for all
            mounts = [
                root / "sys/fs/cgroup" / mount
                for mount in ([controllers, controller] if controllers else ["", "unified"])
            ]
            inside = Path(path.lstrip("/"))
            folders += [mount / group for mount in mounts for group in (inside, *inside.parents)]
    return folders


def limits(file: Path) -> list[float]:
    """The numbers in a file of a control group; infinite where it has no limit or is not there."""
    try:
        return [math.inf if word == "max" or float(word) < 0 else float(word) for word in file.read_text().split()] or [
            math.inf
        ]
    except (OSError, ValueError):
        return [math.inf]
