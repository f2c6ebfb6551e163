"""Linear layers through oneDNN: the numbers of torch's own, whatever the shape; and everything else goes the usual way."""
import pytest
import torch
from torch import nn

from modules import products
from modules.products import Linear, times_transposed

needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="this processor's products stay with torch")


def both(in_features: int, out_features: int, bias: bool) -> tuple[Linear, nn.Linear]:
    """Ours, and torch's in float64 with the same weights."""
    torch.manual_seed(0)
    ours = Linear(in_features, out_features, bias=bias)
    truth = nn.Linear(in_features, out_features, bias=bias).double()
    truth.load_state_dict(ours.state_dict())
    return ours, truth


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (1, 1)])
@pytest.mark.parametrize("in_features, out_features, bias", [(16, 48, True), (33, 5, False), (1, 1, True)])
def test_outputs_and_gradients_are_those_of_float64(shape, in_features, out_features, bias):
    ours, truth = both(in_features, out_features, bias)
    x = torch.randn(*shape, in_features, requires_grad=True)
    x_64 = x.detach().double().requires_grad_()
    outer = torch.randn(*shape, out_features)
    out, out_64 = ours(x), truth(x_64)
    out.backward(outer)
    out_64.backward(outer.double())
    for found, expected in [(out, out_64), (x.grad, x_64.grad), *((a.grad, b.grad) for a, b in zip(ours.parameters(), truth.parameters(), strict=True))]:
        assert found.shape == expected.shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_fp32_goes_to_onednn_and_nothing_else_does():
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert products.for_onednn(x)
    assert not products.for_onednn(x.double()) and not products.for_onednn(x.bfloat16()) and not products.for_onednn(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.for_onednn(x) and Linear(8, 4)(x).dtype == torch.bfloat16
    with torch.profiler.profile() as profile:
        times_transposed(x, weight)
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_transposed_views_are_read_as_they_are():
    a, b = torch.randn(8, 3), torch.randn(8, 5)
    torch.testing.assert_close(times_transposed(a.T, b.T), a.T @ b)


def test_without_onednn_the_numbers_are_the_same(monkeypatch):
    x, ours = torch.randn(2, 6, 16), both(16, 48, True)[0]
    there = ours(x)
    monkeypatch.setattr(products, "HAS_ONEDNN", False)
    torch.testing.assert_close(ours(x), there)
