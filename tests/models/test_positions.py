"""Positions of a GPT: learned, rotary, none, told; and the start tokens of a model of several orders."""

import pytest
import torch

from modules.kernels import rotary
from modules.kernels.rotary import rotary_turns, turned
from modules.models import build_model, count_parameters
from modules.models.generate import Sampling, generate

PARAMS = dict(vocab_size=50, n_layers=2, n_heads=2, embed_dim=24, attn_length=10, dropout=0.0)


def some(*shape, below=50, seed=0):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def by_complex_numbers(qkv_BTE, n_heads):
    """The truth: channel pairs of queries and keys as complex numbers, times e^(i position x 10000^(-pair/pairs))."""
    B, T, E = qkv_BTE.shape
    parts = qkv_BTE.double().reshape(B, T, 3, n_heads, -1, 2)
    pairs = parts.shape[4]
    angles = torch.arange(T).double()[:, None] / 10_000 ** (torch.arange(pairs) / pairs)
    turned = torch.view_as_complex(parts.contiguous()) * torch.exp(1j * angles)[:, None, None]
    return torch.cat([torch.view_as_real(turned)[:, :, :2], parts[:, :, 2:]], dim=2).reshape(B, T, E)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_rotary_positions_and_their_gradient(dtype, tolerance, on_a_gpu, monkeypatch):
    if on_a_gpu:  # real numbers, as its compiler wants them
        monkeypatch.setattr(rotary, "eager_on_cpu", lambda _: False)
    qkv = torch.randn(3, 7, 3 * 2 * 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    outer = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, truth = turned(qkv, 2, rotary_turns(9, 8)[:7]), by_complex_numbers(qkv, 2)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), truth, atol=tolerance, rtol=tolerance)
    (gradient,) = torch.autograd.grad(found, qkv, outer)
    (true_gradient,) = torch.autograd.grad(truth, qkv, outer.double())
    torch.testing.assert_close(gradient, true_gradient, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_the_compiler_takes_rotary_positions_whole():
    model = build_model("gpt", 0, **PARAMS, position="rope")
    inputs, targets = some(3, 10), some(3, 10, seed=1)
    before = model.loss(inputs, targets)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model.loss(inputs, targets), before)


@torch.no_grad()
def test_what_each_kind_of_position_knows():
    """One layer, the last token's hidden vector: which changes of the tokens before it does it notice?"""
    for position, order_matters, place_matters in (
        ("learned", True, True),
        ("rope", True, False),
        ("none", False, False),
    ):
        model = build_model("gpt", 0, **PARAMS | {"n_layers": 1}, position=position).eval()
        for parameter in model.parameters():
            parameter.mul_(5)
        tokens = some(1, 8)
        last = model.hidden(tokens)[0, -1]
        swapped = model.hidden(tokens[:, [1, 0, 2, 3, 4, 5, 6, 7]])[0, -1]
        assert (not torch.allclose(last, swapped, atol=1e-4)) == order_matters, position
        # The same tokens, one place later, after a token that attention is kept from.
        block = model.blocks[0]
        turns = None if model.turns_TC2 is None else model.turns_TC2
        x = model.embedding(tokens)
        here = block(x, None if turns is None else turns[:8])
        later = block(x, None if turns is None else turns[2:10])
        assert torch.allclose(here, later, atol=1e-4)
        assert ("position.weight" in dict(model.named_parameters())) == place_matters


def test_parameters_are_counted():
    for more in ({}, {"position": "rope"}, {"start_tokens": 3}, {"told_places": True}):
        model = build_model("gpt", 0, **PARAMS, **more)
        assert count_parameters("gpt", **PARAMS, **more) == sum(each.numel() for each in model.parameters())
        assert not any("turns" in name for name in model.state_dict())


@pytest.mark.parametrize("name", ["gpt", "gru", "lstm"])
def test_start_tokens_are_read_and_never_predicted(name):
    params = dict(PARAMS)
    if name != "gpt":
        del params["n_heads"]
        params["desired_attn_length"] = params.pop("attn_length")
    model = build_model(name, 0, **params, start_tokens=2).eval()
    starts = torch.tensor([[50], [51]])
    logits = model(torch.cat([starts, some(1, 5).expand(2, 5)], dim=1))
    assert logits.shape == (2, 6, 50) and not torch.allclose(logits[0], logits[1])
    assert generate(model, starts, 9)[:, 1:].max() < 50


@torch.no_grad()
def test_a_model_that_is_told_places_sees_them_and_nothing_later():
    model = build_model("gpt", 0, **PARAMS, told_places=True).eval()
    tokens = torch.stack([some(1, 10), torch.randperm(10, generator=torch.Generator().manual_seed(0))[None]], dim=-1)
    before = model.hidden(tokens)
    for channel in (0, 1):
        changed = tokens.clone()
        changed[0, 6, channel] = (tokens[0, 6, channel] + 1) % 10
        difference = (model.hidden(changed) - before).abs().amax((0, 2))
        assert difference[:6].max() == 0 and (difference[6:] > 0).all()


def test_generation_in_a_fresh_order_is_told_the_places():
    model = build_model("gpt", 0, **PARAMS, told_places=True)
    start, places = some(2, 1), torch.stack([torch.randperm(10), torch.randperm(10)])
    made = generate(model, start, 10, Sampling(temperature=0), places_BT=places)
    with torch.no_grad():
        logits = model.eval()(torch.stack([made[:, :-1], places], dim=-1))
    assert made[:, 1:].equal(logits.argmax(-1))
