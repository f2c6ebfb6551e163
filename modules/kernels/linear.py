"""The linear layer of all models: torch's, except on a CPU.

There products go where they are fastest (products.py), and under autocast weights are cast in each pass; torch would
keep the casts until the backward pass, half the weights' memory again.

Shapes: N rows, K inputs, M outputs.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.kernels.products import autocast_dtype, eager_on_cpu, product_over_rows, times_transposed

FEW_ROWS, SMALL_WEIGHT = 4, 1 << 20  # rows, and numbers in a weight


def is_token_by_token(x: torch.Tensor, weight_MK: torch.Tensor) -> bool:
    """Whether a product is of so few rows that what counts is how soon it begins: torch's own does in half the time of
    oneDNN (9 us and 19 us for a row of 192 and 576 outputs). Of large weights, a head's, it is the time to read them,
    and oneDNN's is half of torch's (1.6 ms and 3.1 ms for 50,257 outputs)."""
    return x.numel() <= FEW_ROWS * x.shape[-1] and weight_MK.numel() <= SMALL_WEIGHT


def of_few_rows(x: torch.Tensor, weight_MK: torch.Tensor, bias_M: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias [..., M]. What a single row takes is the time to read the weight, which torch's product does
    with one thread: multiplied and summed it is read by all, in half the time (15 us and 32 us for 0.44 MB that is in
    no cache, two threads)."""
    if x.numel() > x.shape[-1] or x.dtype != torch.float32 or torch.get_num_threads() == 1:
        return F.linear(x, weight_MK, bias_M)
    product_M = (weight_MK * x.reshape(1, -1)).sum(-1)
    return (product_M if bias_M is None else product_M.add_(bias_M)).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """torch's linear layer, with faster products on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not eager_on_cpu(x):
            return super().forward(x)
        if not torch.is_grad_enabled():
            product = of_few_rows if is_token_by_token(x, self.weight) else times_transposed
            return product(x, self.weight, self.bias)
        return _LinearFunction.apply(x.to(autocast_dtype(x)), self.weight, self.bias)


class _LinearFunction(torch.autograd.Function):
    """x @ weight.T + bias [..., M] of x [..., K], in the dtype of x."""

    @staticmethod
    def forward(ctx, x, weight_MK, bias_M):
        ctx.has_bias = bias_M is not None
        ctx.save_for_backward(x, weight_MK)
        return times_transposed(x, weight_MK.to(x.dtype), None if bias_M is None else bias_M.to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        x, weight_MK = ctx.saved_tensors
        x_NK, grad_output_NM = x.flatten(0, -2), grad_output.flatten(0, -2)
        x_gradient = times_transposed(grad_output, weight_MK.to(x.dtype).T) if ctx.needs_input_grad[0] else None
        weight_gradient = (
            product_over_rows(grad_output_NM, x_NK).to(weight_MK.dtype) if ctx.needs_input_grad[1] else None
        )
        return x_gradient, weight_gradient, grad_output_NM.sum(0).to(weight_MK.dtype) if ctx.has_bias else None
