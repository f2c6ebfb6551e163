"""The linear layer on a CPU: the numbers of torch's own, whatever the shape and the precision, and no cast weights
kept."""

import pytest
import torch
from torch import nn

from modules.kernels import products
from modules.kernels.linear import Linear

SHAPES = [(16, 48, True), (33, 5, False), (2, 1, True)]


def ours_and_torchs(
    in_features: int, out_features: int, bias: bool, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    ours, torchs = Linear(in_features, out_features, bias=bias), nn.Linear(in_features, out_features, bias=bias)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs.to(dtype)


def results(model: nn.Module, x: torch.Tensor, outer: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    out = model(x)
    out.backward(outer.to(out.dtype))
    return [out, x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("in_features, out_features, bias", SHAPES)
def test_outputs_and_gradients_are_those_of_float64(shape, in_features, out_features, bias):
    ours, truth = ours_and_torchs(in_features, out_features, bias, torch.float64)
    x, outer = torch.randn(*shape, in_features), torch.randn(*shape, out_features)
    for found, expected in zip(results(ours, x, outer), results(truth, x.double(), outer.double()), strict=True):
        assert found.shape == expected.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_features, out_features, bias", SHAPES)
def test_in_bf16_the_numbers_and_dtypes_are_those_of_torchs_layer(in_features, out_features, bias):
    ours, torchs = ours_and_torchs(in_features, out_features, bias)
    x, outer = torch.randn(2, 9, in_features), torch.randn(2, 9, out_features)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = list(zip(results(ours, x, outer), results(torchs, x, outer), strict=True))
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_without_onednn_the_numbers_are_the_same():
    ours, _ = ours_and_torchs(16, 48, True)
    x, outer = torch.randn(2, 6, 16), torch.randn(2, 6, 48)
    there = results(ours, x, outer)
    ours.zero_grad()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products.for_onednn(x)
        here = results(ours, x, outer)
    for found, expected in zip(here, there, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_frozen_get_no_gradient_and_inputs_still_do():
    pair = ours_and_torchs(8, 4, True)
    for model in pair:
        model.weight.requires_grad_(False)
    x, outer = torch.randn(3, 8), torch.randn(3, 4)
    (_, found, no_gradient, _), (_, expected, *_) = (results(model, x, outer) for model in pair)
    assert no_gradient is None
    torch.testing.assert_close(found, expected)


def test_an_input_changed_in_place_before_the_backward_pass_is_an_error_and_no_wrong_gradient():
    wide = torch.randn(4, 8, requires_grad=True) * 1
    out = Linear(8, 3)(wide)
    wide.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_in_bf16_no_cast_weight_is_kept_for_the_backward_pass():
    layer, kept = Linear(8, 64), []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        layer(torch.randn(3, 8, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept if tensor.shape == (64, 8)} == {layer.weight.data_ptr()}
