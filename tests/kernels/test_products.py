"""Products through oneDNN; and everything else goes the usual way."""

import pytest
import torch

from modules.kernels import products
from modules.kernels.products import times_transposed

needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="this processor's products stay with torch")


@needs_onednn
def test_fp32_goes_to_onednn_and_nothing_else_does():
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert products.for_onednn(x)
    assert (
        not products.for_onednn(x.double())
        and not products.for_onednn(x.bfloat16())
        and not products.for_onednn(x.to("meta"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.for_onednn(x)
    with torch.profiler.profile() as profile:
        times_transposed(x, weight)
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_transposed_views_are_read_as_they_are():
    a, b = torch.randn(8, 3), torch.randn(8, 5)
    torch.testing.assert_close(times_transposed(a.T, b.T), a.T @ b)
