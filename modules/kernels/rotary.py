"""Rotary positions (RoPE): queries and keys are turned by an angle that grows with their position, so that their
product knows how far apart they are. (J. Su et al., "RoFormer", arXiv 2104.09864.)

Neighbouring channels are a pair, which is turned. Values are left alone. A turn is undone by the opposite one, which
is all that its backward pass is: nothing is kept for it but the turns themselves. On a CPU a pair is a complex number
and a turn one product, some 20 times as fast as in real numbers; a GPU's compiler has no complex numbers.

Shapes: B batch, T time, H heads, C pairs of channels in a head, D = 2 H C, E = 3 D. `turns_TC2` has the cosine and the
sine of each angle.
"""

import torch

from modules.kernels.products import eager_on_cpu

BASE = 10_000.0  # the slowest pair of channels turns once in 2 pi x BASE tokens


def rotary_turns(length: int, channels: int) -> torch.Tensor:
    """The turns [T, C, 2] fp32 of `length` positions, for heads of `channels` = 2 C channels."""
    speeds_C = BASE ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles_TC = torch.arange(length, dtype=torch.float64)[:, None] * speeds_C
    return torch.stack([angles_TC.cos(), angles_TC.sin()], dim=-1).float()


def turned(qkv_BTE: torch.Tensor, n_heads: int, turns_TC2: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values side by side [B, T, E], queries and keys turned; in fp32 whatever the dtype."""
    return _Turn.apply(qkv_BTE, n_heads, turns_TC2)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv_BTE, n_heads, turns_TC2):
        ctx.n_heads = n_heads
        ctx.save_for_backward(turns_TC2)
        return _turned(qkv_BTE, n_heads, turns_TC2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (turns_TC2,) = ctx.saved_tensors
        back_TC2 = torch.stack([turns_TC2[..., 0], -turns_TC2[..., 1]], dim=-1)
        return _turned(grad_output, ctx.n_heads, back_TC2), None, None


def _turned(qkv_BTE: torch.Tensor, n_heads: int, turns_TC2: torch.Tensor) -> torch.Tensor:
    out_BTE = qkv_BTE.clone(memory_format=torch.contiguous_format)
    pairs_BT2HC2 = out_BTE.unflatten(-1, (3, n_heads, -1, 2))[:, :, :2]
    turns_T11C2 = turns_TC2[:, None, None]
    in_fp32 = pairs_BT2HC2.float()
    if eager_on_cpu(qkv_BTE):
        turned_BT2HC2 = torch.view_as_real(torch.view_as_complex(in_fp32) * torch.view_as_complex(turns_T11C2))
    else:
        (x, y), (cosine, sine) = in_fp32.unbind(-1), turns_T11C2.unbind(-1)
        turned_BT2HC2 = torch.stack([x * cosine - y * sine, y * cosine + x * sine], dim=-1)
    pairs_BT2HC2.copy_(turned_BT2HC2)
    return out_BTE
