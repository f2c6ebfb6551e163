"""Layers that keep less: the numbers of torch's own, whatever the shape and the precision, from less memory."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modules import products
from modules.models.gpt import Block
from modules.models.layers import LayerNorm, Linear, gelu


class Plain(nn.Module):
    """What `ours` below are made of, in torch's own layers."""

    def __init__(self, before: str, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.norm = nn.LayerNorm(in_features) if before == "norm" else nn.Identity()
        self.before, self.linear = before, nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.gelu(x, approximate="tanh") if self.before == "gelu" else self.norm(x))


class Ours(Plain):
    def __init__(self, before: str, in_features: int, out_features: int, bias: bool):
        super().__init__(before, in_features, out_features, bias)
        self.linear = Linear(in_features, out_features, bias=bias)
        if before == "norm":
            self.norm = LayerNorm(in_features)
            nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(gelu(x) if self.before == "gelu" else self.norm(x))


def ours_and_truth(before: str, in_features: int, out_features: int, bias: bool, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    ours, truth = Ours(before, in_features, out_features, bias), Plain(before, in_features, out_features, bias)
    truth.load_state_dict(ours.state_dict())
    return ours, truth.to(dtype)


def results(model: nn.Module, x: torch.Tensor, outer: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    out = model(x)
    out.backward(outer.to(out.dtype))
    return [out, x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("before", ["nothing", "norm", "gelu"])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("in_features, out_features, bias", [(16, 48, True), (33, 5, False), (2, 1, True)])
def test_outputs_and_gradients_are_those_of_float64(before, shape, in_features, out_features, bias):
    ours, truth = ours_and_truth(before, in_features, out_features, bias)
    x, outer = torch.randn(*shape, in_features), torch.randn(*shape, out_features)
    for found, expected in zip(results(ours, x, outer), results(truth, x.double(), outer.double()), strict=True):
        assert found.shape == expected.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", ["nothing", "norm", "gelu"])
def test_in_bf16_the_numbers_and_dtypes_are_those_of_torchs_layers(before):
    ours, truth = ours_and_truth(before, 32, 64, True, torch.float32)
    x, outer = torch.randn(2, 9, 32), torch.randn(2, 9, 64)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = list(zip(results(ours, x, outer), results(truth, x, outer), strict=True))
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("before", ["nothing", "norm", "gelu"])
def test_without_onednn_the_numbers_are_the_same(before, monkeypatch):
    ours, _ = ours_and_truth(before, 16, 48, True)
    x, outer = torch.randn(2, 6, 16), torch.randn(2, 6, 48)
    there = results(ours, x, outer)
    ours.zero_grad()
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    for found, expected in zip(results(ours, x, outer), there, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_frozen_get_no_gradient_and_inputs_still_do():
    ours, truth = ours_and_truth("gelu", 8, 4, True, torch.float32)
    for model in (ours, truth):
        model.linear.weight.requires_grad_(False)
    x, outer = torch.randn(3, 8), torch.randn(3, 4)
    found, expected = results(ours, x, outer), results(truth, x, outer)
    assert found[2] is None and expected[2] is None
    torch.testing.assert_close(found[1], expected[1])


def test_an_input_changed_in_place_before_the_backward_pass_is_an_error_and_no_wrong_gradient():
    x = torch.randn(4, 8, requires_grad=True)
    wide = x * 1
    out = Linear(8, 3)(gelu(wide))
    wide.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def bytes_kept(block: Block, n_windows: int, precision: str) -> int:
    """Bytes that the forward pass over windows of 32 tokens keeps for the backward pass."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        block(torch.randn(n_windows, 32, block.norm_1.normalized_shape[0], requires_grad=True))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision, a_width", [("fp32", (1 + 3 + 1 + 1 + 4) * 4), ("bf16", 4 + 3 * 2 + 2 + 4 + 4 * 2)])
def test_a_block_keeps_ten_widths_a_token(precision, a_width):
    """x; queries, keys and values; their mixture; x again; and the wide half before its GELU. Besides that a few numbers a head."""
    width, heads = 64, 2
    block = Block(width, heads, 4.0, dropout=0.0)
    a_token = (bytes_kept(block, 16, precision) - bytes_kept(block, 8, precision)) / (8 * 32)  # what all share, the weights, drops out
    assert a_width * width <= a_token <= a_width * width + 8 * (heads + 2)
