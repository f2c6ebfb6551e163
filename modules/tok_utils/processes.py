"""Processes and cores: which of several processes this is, and how many cores it may use."""
import os
from typing import NamedTuple


class Process(NamedTuple):
    """Which of how many processes this is; as torchrun says in the environment."""
    rank: int
    world_size: int
    local_world_size: int


def this_process() -> Process:
    """This process, the only one where torchrun has not started it."""
    return Process(*(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1))))


def available_cores() -> int:
    """Cores this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
