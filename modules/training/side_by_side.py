"""Runs trained side by side, in processes of the ordinary training scripts, each with a log file.

Small models leave most of a CPU's cores idle: two processes of one thread each train nearly twice as much as one of
two.

When a run fails or this process is asked to stop, the others save and stop; a second signal ends them at once.
When this process is killed, they stop by themselves (children.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.config import Config
from modules.system.children import how_it_ended, signals_kept, start_child
from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.processes import available_cores
from modules.training.resume import files_of
from modules.training.run import Request

SCRIPTS = {"gpt": "train_script.py", "gru": "train_gru.py", "lstm": "train_lstm.py"}
QUOTED_BYTES = 1 << 16  # of the end of a log in which to look for an error


@dataclass
class Training:
    """A run that is being trained: its process, and its log, which may begin with what earlier starts wrote."""

    name: str
    process: subprocess.Popen
    log: Path
    log_start: int
    asked_to_stop: bool = False

    def stop(self, at_once: bool) -> None:
        """Ask it to save and stop; or end it as it is."""
        if at_once:
            self.process.kill()
        elif not self.asked_to_stop:
            self.process.terminate()
        self.asked_to_stop = True

    def failed(self) -> bool:
        """Whether it ended otherwise than by finishing, or by stopping as it was asked to."""
        return self.process.returncode not in (
            (0, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL) if self.asked_to_stop else (0,)
        )

    def failure(self) -> str:
        """Why it failed, for the user."""
        with open(self.log, "rb") as log:
            log.seek(max(self.log_start, self.log.stat().st_size - QUOTED_BYTES))
            said = error_in(log.read().decode("utf-8", errors="replace"))
        return f"{self.name} failed: {said or how_it_ended(self.process.returncode)} (all of it: {self.log})"


def train_side_by_side(runs: Sequence[Config], request: Request, device_name: str | None, jobs: int) -> int:
    """Train the runs in `jobs` processes at a time, each with its share of the cores. The exit status: 0, or 128 + the
    signal that came.

    Raises UserError with the error of each run that failed, after the others have saved and stopped.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))}
    waiting, running, failures = list(runs), [], []
    with (
        signals_kept(signal.SIGINT, signal.SIGTERM) as came,
        bar(total=len(runs), desc="training", unit="run") as progress,
    ):
        try:
            while running or (waiting and not came and not failures):
                while waiting and len(running) < jobs and not came and not failures:
                    running.append(start(waiting.pop(0), request, device_name, environment))
                failures += [training.failure() for training in ended(running, progress) if training.failed()]
                if came or failures:
                    stop(running, came)
                time.sleep(0.1)
        finally:  # an error of ours, a full disk say: what runs is saved all the same
            while running:
                stop(running, came)
                time.sleep(0.1)
                ended(running, progress)
    if failures:
        raise UserError("; and ".join(failures))
    return 128 + came[0] if came else 0


def ended(running: list[Training], progress) -> list[Training]:
    """Take those out of `running` that have ended, and count them in the bar."""
    over = [training for training in running if training.process.poll() is not None]
    for training in over:
        running.remove(training)
        progress.update(training.process.returncode == 0)
    return over


def stop(running: list[Training], came: list[int]) -> None:
    """Let them save and stop, or end them at once where a second signal came."""
    for training in running:
        training.stop(at_once=len(came) > 1)


def start(config: Config, request: Request, device_name: str | None, environment: dict[str, str]) -> Training:
    """Start the ordinary training script on this config."""
    folder = files_of(config, request.project).folder
    config_path, log = folder / "configs" / f"{config.name}.json", folder / "logs" / f"{config.name}.log"
    with replacing(config_path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).parents[2] / SCRIPTS[config.model])]
    command += ["-d", device_name] if device_name is not None else []
    command += [f"--project_name={request.project}", "--", str(config_path)]  # both may begin with "-"
    with open(log, "ab") as output:
        # A session of its own: a terminal's Ctrl-C comes once, through us.
        process = start_child(
            command,
            environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return Training(config.name, process, log, output.tell())


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
