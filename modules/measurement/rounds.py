"""Seed after seed: train, measure, report, until there are as many as were wanted, the interval is short enough, or the
time is spent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.measurement.comparison import Measurement
from modules.measurement.evaluation import Evaluation
from modules.measurement.measure import Wish, measured_states, report_on
from modules.measurement.runs import seeds_after
from modules.system.console import tell
from modules.training.dry_run import duration


@dataclass(frozen=True)
class Limits:
    """When to stop. seeds: at least so many, as far as the time allows. until: go on until the intervals reach no
    further than so many percent to either side, with at most `max_seeds`. end: by `time.monotonic()`, after which no
    round begins that would not end before it, but the first. at_once: seeds that are trained between two reports; None
    for all that are wanted by then."""

    seeds: int
    until: float | None = None
    max_seeds: int = 20
    end: float | None = None
    at_once: int | None = None

    def wanted(self, measurements: Sequence[Measurement]) -> int:
        """How many seeds there should be, as far as is known now."""
        if self.until is None:
            return self.seeds
        return max(min(self.seeds, self.max_seeds), seeds_after(measurements, self.until, self.max_seeds))

    def next(self, there: int, wanted: int) -> int:
        return min(wanted, there + self.at_once) if self.at_once else wanted


def measured_in_rounds(
    train: Callable[[int], tuple[int, list[Path]]], device: torch.device, wish: Wish, limits: Limits, there: int = 0
) -> int:
    """Train and report until `limits` says stop; the exit status.

    train: trains what is missing of so many seeds; its status and the states of all of them, none where another process
    reports. there: how many seeds are trained already, with which the first round begins. The report is written after
    each round, and told after the last.
    """
    known: dict[Path, list[Evaluation]] = {}
    seeds = max(limits.next(0, limits.seeds), min(there, limits.seeds))
    while True:
        start = time.monotonic()
        status, states = train(seeds)
        if status or not states:
            return status
        measurements = measured_states(states, device, wish, known=known)
        told = report_on(measurements, wish)
        took, wanted = time.monotonic() - start, limits.wanted(measurements)
        following = limits.next(seeds, wanted)
        if following <= seeds:
            tell(told)
            return 0
        needed = took * (following - seeds) / (limits.at_once or seeds)
        if limits.end is not None and time.monotonic() + needed > limits.end:
            tell(told)
            tell(
                f"stopped with {seeds} of {wanted} seeds: the next would take {duration(needed)}, which are not left; "
                "the same command with more --minutes goes on"
            )
            return 0
        tell("\n".join(f"seeds {seeds} of {wanted}: {in_short(each)}" for each in measurements if each.is_of_a_text))
        seeds = following


def in_short(measurement: Measurement) -> str:
    """Its result in a line."""
    estimate, name = measurement.estimate, measurement.comparison.name
    low, high = estimate.both
    return f"{name} {estimate.value:+.2f} % ({low:+.2f} to {high:+.2f})"


def seeds_there(are_there: Callable[[int], bool], most: int) -> int:
    """Of how many seeds, from the first on, all states are there."""
    return next((seeds for seeds in range(most) if not are_there(seeds + 1)), most)
