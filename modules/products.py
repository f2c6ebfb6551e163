"""Matrix products in fp32 on a CPU, by oneDNN: what a step spends most of its time on.

torch gives fp32 products to MKL, which on AMD's processors does not use AVX-512. oneDNN, which is in torch as well (bf16 goes there), does. GFLOP/s
of two Zen 5 cores, MKL and oneDNN: logits of 512 tokens of width 192 over 50,257 ids 173 and 433, their gradients 192-202 and 425-440,
a layer of 768 x 3,072 210 and 400-450; with oneDNN held to AVX2 still 5-25 % ahead. The results are fp32 to the same last digits.

`torch.ops.mkldnn._linear_pointwise` is what torch.compile itself emits for a linear layer at inference. It is not public, so it is
asked for by name, and everything else (GPUs, bf16, other processors, compiled code) goes the usual way.

Shapes: N rows, K inputs, M outputs.
"""
import torch
import torch.nn.functional as F
from torch import nn

HAS_ONEDNN = (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
              and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def for_onednn(tensor: torch.Tensor) -> bool:
    """Whether products of this tensor are faster in oneDNN."""
    return (HAS_ONEDNN and tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling())


def times_transposed(a_NK: torch.Tensor, b_MK: torch.Tensor, bias_M: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b.T + bias [N, M], without gradients. For an a @ b give b's transposed view: oneDNN reads either layout as fast."""
    if for_onednn(a_NK):
        return torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, bias_M, "none", [], "")
    return F.linear(a_NK, b_MK, bias_M)


class Linear(nn.Linear):
    """torch's linear layer; in fp32 on a CPU its three products go to oneDNN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not for_onednn(x):
            return super().forward(x)
        return _LinearFunction.apply(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NK, weight_MK, bias_M):
        ctx.save_for_backward(x_NK, weight_MK)
        ctx.has_bias = bias_M is not None
        return times_transposed(x_NK, weight_MK, bias_M)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer_NM):
        x_NK, weight_MK = ctx.saved_tensors
        x_gradient = times_transposed(outer_NM, weight_MK.T) if ctx.needs_input_grad[0] else None
        weight_gradient = times_transposed(outer_NM.T, x_NK.T) if ctx.needs_input_grad[1] else None
        return x_gradient, weight_gradient, outer_NM.sum(0) if ctx.has_bias else None
