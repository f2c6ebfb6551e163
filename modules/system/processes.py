"""Processes and cores: which of several processes this is, where they meet, and how much of the machine each may use.
Imports nothing heavy, unless there are several."""

import datetime
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

from modules.system.console import warn_once
from modules.system.errors import UserError

MEETING = datetime.timedelta(days=30)  # one process may have hours more to do than another


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


def meet(process: Process, what: str) -> None:
    """Wait until all launched processes have come this far, by torch.distributed's barrier (gloo); nothing for one
    alone.

    what: they are to have done, for the message. Raises UserError where one of them ends instead; to start it again is
    torchrun's part (--max-restarts).
    """
    if process.world_size == 1:
        return
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        dist.monitored_barrier(timeout=MEETING)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"process {process.rank + 1} of {process.world_size}: the others have not all {what} ({reason}); "
            "what is done is kept: start again to go on"
        ) from error


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds; None where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held; None on Windows."""
    try:  # on Linux what getrusage says begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        pass
    if os.name == "nt":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
