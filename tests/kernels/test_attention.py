"""Attention by products against torch's own, and its dropout against the formula."""

import math

import pytest
import torch

from modules.kernels.attention import causal_attention

NOTHING_DROPPED = 1e-9  # takes the way of dropout; 16 bits never decide for so rare a thing
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 2, 5),
    (1, 128, 1, 8),
    (2, 129, 3, 4),
    (5, 300, 2, 6),
]  # windows, tokens, heads, channels


def results(qkv: torch.Tensor, function) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the gradient for an outer gradient that is the same for all."""
    qkv = qkv.clone().requires_grad_()
    out = function(qkv)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype))
    return out.detach(), qkv.grad


def random_qkv(windows: int, tokens: int, heads: int, channels: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(
        windows, tokens, 3 * heads * channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cache_bytes", [1, 100_000, 6 << 20])
def test_products_give_the_numbers_and_gradients_of_torchs_attention(shape, cache_bytes):
    """Whether windows and queries go through one by one or all at once."""
    qkv, heads = random_qkv(*shape), shape[2]
    for found, expected in zip(
        results(qkv, lambda x: causal_attention(x, heads, NOTHING_DROPPED, cache_bytes)),
        results(qkv, lambda x: causal_attention(x, heads)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_in_bf16_they_are_as_near_to_the_truth_as_bf16_is():
    heads, qkv = 6, random_qkv(4, 256, 6, 32, torch.bfloat16)
    exact = results(qkv.double(), lambda x: causal_attention(x, heads))
    for found, expected in zip(results(qkv, lambda x: causal_attention(x, heads)), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() / expected.norm() < 0.01


def test_what_is_measured_has_scores_in_fp32():
    """Without gradients, as held-out losses are computed, torch's kernel does it: nearer to the truth where scores are
    large."""
    qkv = 3 * random_qkv(4, 256, 6, 32, torch.bfloat16)
    exact = causal_attention(qkv.double(), 6)
    with torch.no_grad():
        measured = causal_attention(qkv, 6)
    in_training = causal_attention(qkv.requires_grad_(), 6).detach()
    error, error_in_training = ((out.double() - exact).norm() / exact.norm() for out in (measured, in_training))
    assert error < 0.003 and error < error_in_training < 0.03


@pytest.mark.parametrize("shape", [(3, 7, 2, 5), (2, 140, 3, 4)])
def test_with_dropout_they_are_the_formula_with_the_same_choices(shape):
    windows, tokens, heads, channels = shape
    cache_bytes = heads * tokens * tokens * 8  # one window at a time in either call below
    p = 0.3
    # Scores of zero make every weight 1 / (position + 1), and the unit vectors as values show the weights: which were
    # kept, that is.
    shown = torch.zeros(windows, tokens, 3, heads, tokens, dtype=torch.float64)
    shown[:, :, 2] = torch.eye(tokens, dtype=torch.float64)[:, None]
    torch.manual_seed(3)
    weights = (
        causal_attention(shown.flatten(2).requires_grad_(), heads, p, cache_bytes)
        .detach()
        .unflatten(-1, (heads, tokens))
        .transpose(1, 2)
    )
    full = torch.ones(tokens, tokens, dtype=torch.float64).tril() / torch.arange(1, tokens + 1)[:, None] / (1 - p)
    kept = weights != 0
    torch.testing.assert_close(weights, full * kept)
    pairs = windows * heads * tokens * (tokens + 1) // 2
    assert abs(kept.sum().item() / pairs - (1 - p)) < 5 * math.sqrt(p * (1 - p) / pairs)

    def formula(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.unflatten(-1, (3, heads, channels)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / math.sqrt(channels)).masked_fill(
            torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -math.inf
        )
        return (scores.softmax(-1) * kept / (1 - p) @ v).transpose(1, 2).flatten(2)

    def by_products(qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return causal_attention(qkv, heads, p, cache_bytes)

    qkv = random_qkv(*shape)
    for found, expected in zip(results(qkv, by_products), results(qkv, formula), strict=True):
        torch.testing.assert_close(found, expected)


def test_torchs_seed_repeats_the_dropout():
    qkv = random_qkv(2, 20, 2, 8, torch.float32).requires_grad_()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(causal_attention(qkv, 2, 0.2))
    assert outs[0].equal(outs[1]) and not outs[0].equal(outs[2])


def test_one_call_keeps_queries_keys_and_values_and_nothing_else():
    qkv, kept = random_qkv(2, 64, 2, 8, torch.float32).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        causal_attention(qkv, 2, 0.1)
    assert [tensor.data_ptr() for tensor in kept] == [qkv.data_ptr()]
