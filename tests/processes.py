"""What tests that kill real processes ask the kernel about them."""

import time
from pathlib import Path

import pytest


def children_of(pid: int, at_least: int = 1) -> list[int]:
    """The child processes of `pid`, as soon as there are `at_least` so many."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("needs /proc")
    while len(children := [int(child) for child in listed.read_text().split()]) < at_least:
        time.sleep(0.01)
    return children


def is_running(pid: int) -> bool:
    """Whether there is such a process and it has not ended yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
