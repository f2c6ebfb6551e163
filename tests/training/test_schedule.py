"""The schedule against torch's schedulers where they agree, and against its own definition where they do not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.config import OptimParams
from modules.training.schedule import lr_at

PAPER = OptimParams(lr=1e-4, warmup_steps=4000, oscil_steps=300000, lr_shrink=0.85, lr_init=1e-7, lr_min=1e-6)
SHORT = OptimParams(lr=3e-3, warmup_steps=7, oscil_steps=11, lr_shrink=1.0, lr_init=3e-5, lr_min=2e-4)


def rates_of_torch(optim: OptimParams, steps: int) -> list[float]:
    """The rates that torch's own schedulers give; they know no lr_shrink."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, optim.lr_init / optim.lr, 1.0, optim.warmup_steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, optim.oscil_steps, eta_min=optim.lr_min)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [optim.warmup_steps])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_agrees_with_torch_where_nothing_shrinks():
    steps = SHORT.warmup_steps + 3 * SHORT.oscil_steps + 5
    assert [lr_at(step, SHORT) for step in range(steps)] == pytest.approx(rates_of_torch(SHORT, steps), rel=1e-9)


def test_landmarks_of_the_papers_schedule():
    assert lr_at(0, PAPER) == 1e-7
    assert lr_at(2000, PAPER) == pytest.approx((1e-7 + 1e-4) / 2)
    assert lr_at(4000, PAPER) == 1e-4
    assert lr_at(4000 + 150000, PAPER) == pytest.approx((1e-6 + 1e-4) / 2)
    assert lr_at(4000 + 299999, PAPER) == pytest.approx(1e-6, rel=1e-4)
    assert lr_at(4000 + 300000, PAPER) == pytest.approx(0.85e-4)
    assert lr_at(4000 + 2 * 300000, PAPER) == pytest.approx(0.85**2 * 1e-4)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert lr_at(0, PAPER.model_copy(update={"warmup_steps": 0})) == PAPER.lr


@given(step=st.integers(0, 10**7), shrink=st.floats(0.1, 1))
def test_each_cycle_is_the_first_one_shrunk(step, shrink):
    optim = PAPER.model_copy(update={"lr_shrink": shrink})
    later = lr_at(optim.warmup_steps + step, optim)
    first = lr_at(optim.warmup_steps + step % optim.oscil_steps, optim)
    assert math.isclose(later, shrink ** (step // optim.oscil_steps) * first, rel_tol=1e-12)


@given(start=st.integers(0, 50), length=st.integers(1, 40), step=st.integers(0, 120))
def test_cool_down_is_a_line_to_zero(start, length, step):
    optim = SHORT.model_copy(update={"cooldown_start": start, "cooldown_steps": length})
    rate = lr_at(step, optim)
    if step <= start:
        assert rate == lr_at(step, SHORT)
    elif step >= start + length:
        assert rate == 0
    else:
        # Two points fix a line: the rate at the start and zero at the end.
        assert rate == pytest.approx(lr_at(start, SHORT) * (start + length - step) / length)
