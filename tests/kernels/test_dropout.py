"""Dropout drawn 16 bits at a time: as many as asked, independent, repeatable, and the same in the backward pass."""

import math

import pytest
import torch

from modules.kernels.dropout import Dropout

COUNT = 400_000


def kept(p: float, *shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    """Where a dropout of ones is not zero."""
    torch.manual_seed(seed)
    out = Dropout(p)(torch.ones(*shape, dtype=dtype))
    assert set(out.unique().tolist()) <= {0, torch.tensor(1 / (1 - p), dtype=dtype).item()}, (
        "kept numbers make up for the others"
    )
    return out != 0


def within(found: float, expected: float, count: int) -> bool:
    """Whether a share of `count` choices lies within five standard errors."""
    return abs(found - expected) <= 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("p", [0.001, 0.1, 1 / 3, 0.5, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_drops_as_many_as_asked_wherever_they_stand(p, dtype):
    choices = kept(p, COUNT, dtype=dtype)
    assert within(choices.float().mean().item(), 1 - p, COUNT)
    for lane in choices.view(-1, 4).T:  # four choices come from one random number
        assert within(lane.float().mean().item(), 1 - p, COUNT // 4)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 64])
def test_choices_are_independent_of_their_neighbours(distance):
    choices = kept(0.5, COUNT)
    assert within((choices[distance:] == choices[:-distance]).float().mean().item(), 0.5, COUNT - distance)


def test_torchs_seed_repeats_it_and_each_call_draws_anew():
    assert kept(0.3, 1000).equal(kept(0.3, 1000))
    assert not kept(0.3, 1000).equal(kept(0.3, 1000, seed=1))
    torch.manual_seed(0)
    first, second = (Dropout(0.3)(torch.ones(1000)) for _ in range(2))
    assert not first.equal(second)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1,), (0, 3)])
def test_the_gradient_goes_where_the_number_was_kept(shape):
    x = (torch.rand(shape) + 0.5).requires_grad_()
    out = Dropout(0.4)(x)
    out.backward(torch.full(shape, 2.0))
    torch.testing.assert_close(x.grad, 2 * (out / x).detach())


def test_nothing_happens_outside_training_or_at_zero():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
