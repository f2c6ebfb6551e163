"""Seed after seed: train, measure, report, until there are as many as were wanted, the interval is short enough, or the
time is spent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch

from modules.config import Config
from modules.measurement.comparison import Measurement
from modules.measurement.evaluation import Evaluation
from modules.measurement.measure import Wish, measured_states, report_on
from modules.measurement.runs import seeds_after, train_in_turn
from modules.system.console import tell
from modules.training.dry_run import duration
from modules.training.placement import at_a_time
from modules.training.resume import files_of
from modules.training.run import Request
from modules.training.side_by_side import train_side_by_side


@dataclass(frozen=True)
class Limits:
    """When to stop. seeds: at least so many, as far as the time allows. until: go on until the intervals reach no
    further than so many percent to either side, with at most `max_seeds`. end: by `time.monotonic()`: but for the first
    no seeds are begun that would end later. With an end there is a report after each round of runs side by side."""

    seeds: int
    until: float | None = None
    max_seeds: int = 20
    end: float | None = None

    def wanted(self, measurements: Sequence[Measurement]) -> int:
        """How many seeds there should be, as far as is known now."""
        if self.until is None:
            return self.seeds
        return max(min(self.seeds, self.max_seeds), seeds_after(measurements, self.until, self.max_seeds))


@dataclass(frozen=True)
class Work:
    """The training of a measurement. runs_of: from a number of seeds to all their runs; the others as `-d` and `--jobs`
    say."""

    runs_of: Callable[[int], list[Config]]
    project: str
    device_name: str | None
    jobs: int | None
    trained: set[Path] = field(default_factory=set)  # states that this process has seen finished

    def states_of(self, seeds: int) -> dict[Path, Config]:
        return {files_of(run, self.project).state: run for run in self.runs_of(seeds)}

    def train(self, seeds: int) -> tuple[int, bool]:
        """Train what is missing of so many seeds; the exit status, and whether this process is the one to report."""
        states, request = self.states_of(seeds), Request(self.project)
        runs = [run for state, run in states.items() if state not in self.trained]
        if self.jobs == 1:
            status, is_main = train_in_turn(runs, request, self.device_name)
        else:
            status, is_main = train_side_by_side(runs, request, self.device_name, self.jobs), True
        self.trained.update(states)
        return status, is_main


def measured_in_rounds(work: Work, device: torch.device, wish: Wish, limits: Limits) -> int:
    """Train and report until `limits` says stop; the exit status. The report is written after each round, and told
    after the last."""
    known: dict[Path, list[Evaluation]] = {}
    a_round = max(limits.seeds, limits.max_seeds)
    seeds = limits.seeds
    if limits.end is not None:
        a_seed = len(work.runs_of(1))
        a_round = max(1, at_a_time(work.jobs, work.device_name, device) // a_seed)
        there = takewhile(Path.exists, work.states_of(limits.seeds))  # all runs of a seed before those of the next
        seeds = min(limits.seeds, max(a_round, sum(1 for _ in there) // a_seed))
    while True:
        start = time.monotonic()
        status, reports = work.train(seeds)
        if status or not reports:
            return status
        measurements = measured_states(list(work.states_of(seeds)), device, wish, known=known)
        told = report_on(measurements, wish)
        took, wanted = time.monotonic() - start, limits.wanted(measurements)
        following = min(wanted, seeds + a_round)
        if following <= seeds:
            tell(told)
            return 0
        if limits.end is not None and time.monotonic() + took > limits.end:
            tell(told)
            tell(
                f"stopped with {seeds} of {wanted} seeds: the next would take {duration(took)}, which are not left; "
                "the same command with more --minutes goes on"
            )
            return 0
        tell("\n".join(f"seeds {seeds} of {wanted}: {in_short(each)}" for each in measurements if each.is_of_a_text))
        seeds = following


def in_short(measurement: Measurement) -> str:
    """Its result in a line."""
    estimate, name = measurement.estimate, measurement.comparison.name
    low, high = estimate.both
    sure = f"{low:+.2f} to {high:+.2f}" if estimate.seeds else "one seed, which has no verdict"
    return f"{name} {estimate.value:+.2f} % ({sure})"
