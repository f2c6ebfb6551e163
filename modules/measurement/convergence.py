"""Whether an arrow has converged: the arrow at each validation with its interval, how much the loss still falls, passes
over the text, gaps.

A model that is still learning shows an arrow that says which direction is learned faster, and not which is harder. So
an arrow counts as moving where it changed by more than the half-width of its interval over the last third of the
training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from modules.measurement import arrow

MOST_PASSES = 1.5  # beyond it a model may learn its text by heart


class LossPair(NamedTuple):
    """Mean losses of the held-out windows of the reference and of the order, each [seeds, windows, 1], nats per token.
    documents, folds: see `arrow.measure`."""

    forward: np.ndarray
    backward: np.ndarray
    documents: np.ndarray | None
    folds: bool = False

    @property
    def measured(self) -> arrow.Arrow:
        return arrow.measure(self.forward, self.backward, documents=self.documents, folds=self.folds)

    @property
    def sample(self) -> arrow.Sample:
        """In percent of the mean of both losses."""
        return arrow.sample(self.forward, self.backward, self.documents, arrow.OF_THE_MEAN, self.folds)


@dataclass(frozen=True)
class Point:
    """The arrow at one validation, in percent of the forward loss, and the loss there: the mean of both directions,
    nats per token."""

    step: int
    percent: float
    interval: arrow.Interval
    loss: float


@dataclass(frozen=True)
class Convergence:
    """What is known of how far a comparison's models have come.

    points: one for each validation that all runs have, in order of steps; empty where none is known. change: of the
    arrow over the last third, in percentage points. fall: of the loss over the last third, nats per token. passes: over
    the training text. gaps: held-out minus training loss by order, nats per token; None where the training losses
    are not known.
    """

    points: list[Point]
    change: float | None
    fall: float | None
    passes: float
    gaps: dict[str, float] | None
    warnings: list[str]
    moving: bool | None
    verdict: str


def convergence(
    losses: Mapping[int, LossPair],
    last_step: int,
    passes: float,
    training_losses: Mapping[str, float] | None,
    held_out: Mapping[str, float],
    half_width: float,
) -> Convergence:
    """Of the losses at each validation that all runs have, by step, in order.

    training_losses: the training loss at the end by order (forward's, or that of what stands for it, first), or None.
    held_out: the final held-out losses by order, nats per token. half_width: of the final arrow's interval, nats per
    token.
    """
    points = [point(step, of_step) for step, of_step in losses.items()]
    before = [each for each in points if each.step <= last_step * 2 / 3]
    change = fall = moving = None
    verdict = (
        "Whether the arrow still moves is not known: it takes a validation at or before two thirds of the training "
        "(save_every)."
    )
    if before and points[-1].step == last_step:
        change, fall = points[-1].percent - before[-1].percent, before[-1].loss - points[-1].loss
        half_interval = (points[-1].interval[1] - points[-1].interval[0]) / 2
        moving = abs(change) > half_interval
        verdict = (
            f"{'Still moving' if moving else 'Not seen to move any more'}: over the last third of the training the "
            f"arrow changed by {change:+.2f} percentage points (half-width of its interval {half_interval:.2f}) while "
            f"the loss fell by {fall:.4f} nats."
        )
    gaps = (
        {direction: held_out[direction] - training_losses[direction] for direction in held_out}
        if training_losses
        else None
    )
    return Convergence(points, change, fall, passes, gaps, warnings_of(passes, gaps, half_width), moving, verdict)


def point(step: int, losses: LossPair) -> Point:
    """The arrow of one validation."""
    found = losses.measured
    return Point(step, found.percent.value, found.percent.both, (found.forward + found.backward) / 2)


def warnings_of(passes: float, gaps: Mapping[str, float] | None, half_width: float) -> list[str]:
    """What makes the arrow doubtful beside its movement, in sentences."""
    found = []
    if passes > MOST_PASSES:
        found.append(
            f"The models passed {passes:.1f} times over their text, more than {MOST_PASSES}: part of the loss may be "
            "learned by heart."
        )
    if gaps:
        (one, gap), (other, other_gap) = gaps.items()
        if abs(other_gap - gap) > half_width:
            found.append(
                f"Held-out loss exceeds training loss by {gap:+.4f} nats {one} and {other_gap:+.4f} {other}: the "
                "directions differ in how they generalize by more than the arrow's interval."
            )
    return found
