"""The learning rate of each optimizer step: linear warm-up, then cosine annealing with warm restarts, then maybe a
cool-down.

A pure function of the step, so there is no scheduler state to save: a run that
resumes at step k has the schedule of one that was never stopped. (torch's
SequentialLR of LinearLR and CosineAnnealingWarmRestarts is the same curve, but carries state, and
has no factor that shrinks the rate from one cycle to the next.)
"""

import math

from modules.config import OptimParams


def lr_at(step: int, optim: OptimParams) -> float:
    """The learning rate with which optimizer step `step` (from 0) is taken.

    Warm-up: a line from `lr_init` at step 0 to `lr` at step `warmup_steps`. Then, at step t of cycle n = 0, 1, 2 ... of
    `oscil_steps` each: lr_shrink**n * (lr_min + (lr - lr_min) * (1 + cos(pi * t / oscil_steps)) / 2), or, without
    `oscil_steps`, `lr` all the way. Cool-down, where
    it is asked for: a line from the rate at `cooldown_start` to zero `cooldown_steps` later, and zero from there on.
    """
    if optim.cooldown is not None and step > (start := optim.cooldown[0]):
        share_left = 1 - (step - start) / optim.cooldown[1]
        return annealed(start, optim) * max(share_left, 0.0)
    return annealed(step, optim)


def annealed(step: int, optim: OptimParams) -> float:
    """The schedule without its cool-down."""
    if step < optim.warmup_steps:
        return optim.lr_init + (optim.lr - optim.lr_init) * step / optim.warmup_steps
    if optim.oscil_steps is None:
        return optim.lr
    cycle, t = divmod(step - optim.warmup_steps, optim.oscil_steps)
    cosine = (1 + math.cos(math.pi * t / optim.oscil_steps)) / 2
    return optim.lr_shrink**cycle * (optim.lr_min + (optim.lr - optim.lr_min) * cosine)
