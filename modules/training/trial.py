"""What a run needs, measured on a few of its steps: memory of its device and time, in a process of its own, whose
memory nothing else is in."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from modules.config import Config, parse_config
from modules.system.children import LAUNCHER, end_with_launcher
from modules.system.errors import UserError, described
from modules.training.devices import pick_device
from modules.training.dry_run import peak_bytes, seconds_a_step
from modules.training.parallel import Processes
from modules.training.run import data_of, last_step_of, prepare


@dataclass(frozen=True)
class Trial:
    """bytes: the most that it held of its device's memory (of the machine's on a CPU); infinite where it was not
    enough. seconds: of a step. steps: that the whole run has."""

    bytes: float
    seconds: float
    steps: int


def try_out(config: Config, device_name: str | None) -> Trial:
    """Take a few steps of a run, of which nothing stays. Raises UserError like the run itself."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    said = (config.to_dict(), config.name, device_name, os.getpid(), theirs)
    process = context.Process(target=_work, args=said, daemon=True)
    with deaf_to_ctrl_c():  # which comes to this process, and ends that one with it
        process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:  # it was killed: by the kernel, for its memory
        found = Trial(float("inf"), 0.0, 0)
    process.join()
    if isinstance(found, UserError):
        raise found
    return found


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are started within never hear SIGINT; nor does this one, meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(config: dict, name: str, device_name: str | None, launcher: int, pipe: Connection) -> None:
    """The process: sends a Trial, or a UserError."""
    os.environ[LAUNCHER] = str(launcher)
    end_with_launcher()
    try:
        pipe.send(tried_here(parse_config(config, name), Processes(0, 1, pick_device(device_name))))
    except torch.OutOfMemoryError:
        pipe.send(Trial(float("inf"), 0.0, 0))
    except Exception as error:
        line = described(error)
        if line is None:
            raise
        pipe.send(UserError(line))


def tried_here(config: Config, processes: Processes) -> Trial:
    """The same in this process."""
    data = data_of(config, None, processes)
    steps = last_step_of(config, len(data.windows))
    seconds = seconds_a_step(prepare(config.cooled(steps), data, processes))
    return Trial(peak_bytes(processes) or float("inf"), seconds, steps)
