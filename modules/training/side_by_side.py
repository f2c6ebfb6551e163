"""Runs trained side by side, in processes of the ordinary training scripts, each with a log file.

Small models leave most of a CPU's cores idle: two processes of one thread each train nearly twice as much as one of
two.

When a run fails or this process is asked to stop, the others save and stop; a second Ctrl-C ends them at once. When
this process is killed, they stop by themselves (children.py). On a machine with several GPUs each has one of its own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modules.config import Config
from modules.system.children import Child, how_it_ended, start_child, supervise
from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.processes import available_cores
from modules.training.devices import gpu_of_its_own
from modules.training.resume import files_of
from modules.training.run import PROJECT_FOLDER, Request

QUOTED_BYTES = 1 << 16  # of the end of a log in which to look for an error


@dataclass
class Run(Child):
    """A run that is being trained, and its log, which may begin with what earlier starts wrote."""

    log: Path = Path()
    log_start: int = 0

    def failure(self) -> str:
        """Why it failed, for the user."""
        with open(self.log, "rb") as log:
            log.seek(max(self.log_start, self.log.stat().st_size - QUOTED_BYTES))
            said = error_in(log.read().decode("utf-8", errors="replace"))
        return f"{self.name} failed: {said or how_it_ended(self.process.returncode)} (all of it: {self.log})"


def train_side_by_side(
    runs: Sequence[Config],
    request: Request,
    device_name: str | None,
    jobs: int,
    n_gpus: int = 0,
    script: Path = PROJECT_FOLDER / "train_script.py",
) -> int:
    """Train the runs in `jobs` processes at a time, each with its share of the cores, and in turn with one of the
    `n_gpus` of this machine. The exit status: 0, or 128 + the signal that came.

    script: the ordinary training script. Raises UserError with the error of each run that failed, after the others have
    saved and stopped.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))}

    def start(config: Config, slot: int) -> Run:
        device = gpu_of_its_own(slot, device_name, n_gpus)
        return start_training(script, config, request, device, environment)

    with bar(total=len(runs), desc="training", unit="run") as progress:
        children, came = supervise(
            [partial(start, config) for config in runs],
            jobs,
            ended=lambda child: progress.update(child.process.returncode == 0),
        )
    if failures := [child.failure() for child in children if isinstance(child, Run) and child.failed()]:
        raise UserError("; and ".join(failures))
    return 128 + came[0] if came else 0


def start_training(
    script: Path, config: Config, request: Request, device_name: str | None, environment: dict[str, str]
) -> Run:
    """Start the training script on this config."""
    folder = files_of(config, request.project).folder
    config_path, log = folder / "configs" / f"{config.name}.json", folder / "logs" / f"{config.name}.log"
    with replacing(config_path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script)]
    command += ["-d", device_name] if device_name is not None else []
    command += [f"--project_name={request.project}", "--", str(config_path)]  # both may begin with "-"
    with open(log, "ab") as output:
        process = start_child(command, environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        return Run(config.name, process, log=log, log_start=output.tell())


def error_in(output: str) -> str | None:
    """The line in which a script's output tells its error: the last "error: ...", else what the last traceback ends
    with."""
    lines = [
        line.rpartition("\r")[2].strip("\n") for line in output.split("\n")
    ]  # a bar is drawn again after each carriage return
    if told := [line for line in lines if line.startswith("error: ")]:
        return told[-1]
    if "Traceback (most recent call last):" in lines:
        last = len(lines) - lines[::-1].index("Traceback (most recent call last):")
        return next((line for line in lines[last:] if re.match(r"\S", line)), None)
    return None
