"""TF32 is for the blocks of code that ask for it, and measured losses are never in it."""

import numpy as np
import pytest
import torch

from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Windows
from modules.kernels.precision import fp32_products, has_tf32
from modules.models import build_model
from modules.models.evaluate import held_out_losses
from tests.toy import write_tokens


def now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_a_block_has_the_precision_that_it_asks_for_and_puts_back_what_was():
    before = now()
    with fp32_products(tf32=True):
        assert now() == ("high", True)
        with pytest.raises(RuntimeError), fp32_products(tf32=False):
            assert now() == ("highest", False)
            raise RuntimeError
        assert now() == ("high", True)
    assert now() == before


def test_a_cpu_has_none():
    assert not has_tf32(torch.device("cpu")) and not has_tf32(torch.device("mps"))


@pytest.mark.parametrize("outside", [False, True])
def test_held_out_losses_are_in_fp32_whatever_was_set_before(tmp_path, outside):
    windows = Windows(open_tokens(write_tokens(tmp_path / "toy.h5", 2_000)), 0, 8, 16, 16, READ_FORWARD)
    model = build_model("gpt", 0, vocab_size=64, n_layers=1, n_heads=1, embed_dim=8, attn_length=16)
    seen = []
    model.embedding.register_forward_pre_hook(lambda *_: seen.append(now()))
    with fp32_products(tf32=outside):
        before = now()
        losses = held_out_losses(model, windows, 4, torch.device("cpu"))
        assert now() == before
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert set(seen) == {("highest", False)}
