"""What each step of a run was trained with: the learning rate, the optimizer's settings and the precision, from the
first step to the last.

A config says what a run is asked for now. Where it was changed on the way (a cool-down, another learning rate by
intent), the last config no longer says what the run is. So a state carries its *stages*: stretches of steps, each with
the settings that it was trained with. Two runs are compared by what they really did, step by step, not by their last
config.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from modules.config import Config, OptimParams
from modules.system.schema import Schema
from modules.training.schedule import lr_at

Precision = Literal["fp32", "bf16"]
NOT_OF_THE_SCHEDULE = ("weight_decay", "grad_clip")


class Stage(Schema):
    """Steps from `first_step` (counted from 0) on, up to the next stage.

    tf32: whether products of fp32 were in TF32 (kernels/precision.py); None in states of earlier versions, which did
    not say: they may be compared with either.
    """

    first_step: int = Field(ge=0)
    optim_params: OptimParams
    precision: Precision
    tf32: bool | None = None

    def settings(self, beside: "Stage") -> dict[str, object]:
        """What may differ from the stage `beside`, by the name under which it is reported; the learning rate apart,
        which changes by the step."""
        optim = {f"optim_params.{key}": getattr(self.optim_params, key) for key in NOT_OF_THE_SCHEDULE}
        return optim | {"precision": self.arithmetic(beside)}

    def arithmetic(self, beside: "Stage") -> str:
        """The precision in words, as far as it can be compared with that of the stage `beside`."""
        return f"{self.precision} (TF32 products)" if self.tf32 and beside.tf32 is not None else self.precision


def stage_of(config: Config, precision: Precision, tf32: bool | None, first_step: int = 0) -> Stage:
    """The stage in which a run trains from `first_step` on. tf32: whether its device multiplies fp32 in TF32;
    None where that is of no account."""
    tf32 = tf32 and precision == "fp32"
    return Stage(first_step=first_step, optim_params=config.optim_params, precision=precision, tf32=tf32)


def continued(
    stages: Sequence[Stage], step: int, config: Config, precision: Precision, tf32: bool = False
) -> list[Stage]:
    """The stages of a run that goes on at `step` as `config` says: those that `step` has reached, and one more where
    something changes."""
    before = [stage for stage in stages if stage.first_step < step]
    now = stage_of(config, precision, tf32, step if before else 0)
    if (
        before
        and before[-1].optim_params == now.optim_params
        and before[-1].arithmetic(now) == now.arithmetic(before[-1])
    ):
        return before
    return [*before, now]


def as_data(stages: Sequence[Stage]) -> list[dict]:
    """Plain data, for a state or a report."""
    return [stage.model_dump(mode="json") for stage in stages]


def first_difference(one: Sequence[Stage], other: Sequence[Stage], steps: int) -> str | None:
    """Where two runs of `steps` steps first differ in what they were trained with, in words; None where they do not."""
    starts = sorted({stage.first_step for stage in (*one, *other) if stage.first_step < steps})
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        mine, others = at(one, start), at(other, start)
        for name, value in mine.settings(others).items():
            if value != (other_value := others.settings(mine)[name]):
                return f"{name} from step {start:,} on ({value} and {other_value})"
        if mine.optim_params == others.optim_params:
            continue
        for step in range(start, end):
            rates = lr_at(step, mine.optim_params), lr_at(step, others.optim_params)
            if rates[0] != rates[1]:
                return f"the learning rate of step {step:,} ({rates[0]:.6g} and {rates[1]:.6g})"
    return None


def at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage in which `step` was or will be trained."""
    return next(stage for stage in reversed(stages) if stage.first_step <= step)


def changes(stages: Sequence[Stage]) -> list[str]:
    """What changed on the way, a line a change: empty for a run that was trained as it began."""
    lines = []
    for before, after in zip(stages, stages[1:], strict=False):
        old = before.optim_params.model_dump() | {"precision": before.arithmetic(after)}
        new = after.optim_params.model_dump() | {"precision": after.arithmetic(before)}
        different = [f"{key} {old[key]} -> {new[key]}" for key in new if old[key] != new[key]]
        lines.append(f"from step {after.first_step:,}: {', '.join(different)}")
    return lines
