"""Runs trained side by side, in processes of the ordinary training scripts, each with a log file.

Small models leave most of a machine idle: on a CPU two processes of one thread each train nearly twice as much as one
of two, and a GPU has room for several. Which run goes where, and how many at a time, is placement.py's to say.

When a run fails or this process is asked to stop, the others save and stop; a second Ctrl-C ends them at once. When
this process is killed, they stop by themselves (children.py). A run that dies for lack of memory is tried once more at
the end, alone: what it needed may have been the others'.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGKILL

from modules.config import Config
from modules.system.children import Child, how_it_ended, start_child, supervise
from modules.system.console import tell
from modules.system.errors import NO_MEMORY, UserError
from modules.system.files import replacing
from modules.system.processes import available_cores
from modules.training.placement import Place, Placement, place_for, placement_for
from modules.training.resume import Files, files_of
from modules.training.run import PROJECT_FOLDER, Request
from modules.training.watching import Progress

QUOTED_BYTES = 1 << 16  # of the end of a log in which to look for an error


@dataclass(kw_only=True, eq=False)
class Run(Child):
    """A run that is being trained. place: where, and `needs`: bytes of its memory. log: which may begin with what
    earlier starts wrote, before `log_start`. has_another_try: it died for lack of memory."""

    config: Config
    files: Files
    place: Place
    needs: float
    log: Path
    log_start: int
    has_another_try: bool = False

    def failed(self, well: Collection[int] = (0,)) -> bool:
        return super().failed(well) and not self.has_another_try

    def failure(self) -> str:
        """Why it failed, for the user."""
        return f"{self.name} failed: {self.error() or how_it_ended(self.process.returncode)} (all of it: {self.log})"

    def error(self) -> str | None:
        """The line in which it told its error."""
        with open(self.log, "rb") as log:
            log.seek(max(self.log_start, self.log.stat().st_size - QUOTED_BYTES))
            return error_in(log.read().decode("utf-8", errors="replace"))

    def died_of_memory(self) -> bool:
        """Whether it says so, or was killed as the kernel kills where memory is short."""
        if self.process.returncode == -SIGKILL:
            return SIGKILL not in self.sent
        return super().failed() and NO_MEMORY.search(self.error() or "") is not None


def train_side_by_side(
    runs: Sequence[Config],
    request: Request,
    device_name: str | None,
    jobs: int | None,
    script: Path = PROJECT_FOLDER / "train_script.py",
    plan: Placement | None = None,
) -> int:
    """Train the runs, at most `jobs` at a time, as many as the machine is good for where it is None. The exit status:
    0, or 128 + the signal that came.

    script: the ordinary training script. plan: instead of that of placement.py. Raises UserError with the error of each
    run that failed, after the others have saved and stopped.
    """
    plan = plan or placement_for(runs, device_name, jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, available_cores() // max(1, plan.at_a_time)))}
    queue = Queue(runs, plan, partial(start_training, script, request=request, environment=environment))
    tell(f"training {plan.line}", sys.stderr)
    with Progress(len(runs)) as progress:

        def ended(run: Run) -> None:
            queue.take_back(run)
            progress.count(run.process.returncode == 0)

        over, came = supervise(queue.start_next, ended=ended, meanwhile=progress.show)
    failures = [run.failure() for run in over if run.failed() or (run in queue.again and not came)]
    if failures:
        raise UserError("; and ".join(failures))
    return 128 + came[0] if came else 0


class Queue:
    """The runs that wait, and those that died for lack of memory and are to have another try."""

    def __init__(self, runs: Sequence[Config], plan: Placement, start: Callable[..., Run]):
        self._waiting, self._plan, self._start = list(runs), plan, start
        self.again: list[Run] = []
        self._had_two: set[str] = set()

    def start_next(self, running: Sequence[Run]) -> Run | None:
        """Start the next run if there is room for it beside these; at the end one that died before, alone."""
        if self._waiting and len(running) < self._plan.at_a_time:
            needs = self._plan.needs[self._waiting[0].name]
            place = place_for(needs, self._plan.places, [(run.place, run.needs) for run in running])
            if place is not None:
                return self._start(self._waiting.pop(0), place=place, needs=needs)
        if self.again and not self._waiting and not running:
            died = self.again.pop(0)
            self._had_two.add(died.name)
            tell(f"{died.name}: tried again, alone", sys.stderr)
            return self._start(died.config, place=died.place, needs=died.needs)
        return None

    def take_back(self, run: Run) -> None:
        """Keep a run that has ended for another try, if it is to have one."""
        if self._plan.at_a_time > 1 and run.name not in self._had_two and run.died_of_memory():
            run.has_another_try = True
            self.again.append(run)
            tell(f"{run.name}: died for lack of memory; it is tried again at the end, alone", sys.stderr)


def start_training(
    script: Path, config: Config, request: Request, place: Place, needs: float, environment: dict[str, str]
) -> Run:
    """Start the training script on this config."""
    files = files_of(config, request.project)
    log = files.folder / "logs" / f"{config.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = training_command(script, config, request, place.device)
    with open(log, "ab") as output:
        process = start_child(command, environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        start = output.tell()
    return Run(config.name, process, config=config, files=files, place=place, needs=needs, log=log, log_start=start)


def training_command(script: Path, config: Config, request: Request, device_name: str | None) -> list[str]:
    """The command that trains this config, which is written for it beside the states."""
    config_path = files_of(config, request.project).folder / "configs" / f"{config.name}.json"
    with replacing(config_path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    device = ["-d", device_name] if device_name is not None else []
    names = [f"--project_name={request.project}", "--", str(config_path)]  # both may begin with "-"
    return [sys.executable, str(script), *device, *names]


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
