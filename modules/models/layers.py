"""Layers of a model. A linear layer after a norm or a GELU keeps what went into that, not what came out.

Autograd keeps the input of each of these three for the backward pass. The input of the linear layer is the output of the norm or
GELU before it, and follows from theirs: here it is computed once more instead of kept, so that of a block of width D there stay
10 D numbers a token instead of 16 D. A step takes 2 to 5 % longer on a CPU for that (most of it the GELU).
Under torch.compile the layers are torch's own: the compiler makes the same choice by itself.

Shapes: N rows, K inputs, M outputs.
"""
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from modules.products import autocast_dtype, product_over_rows, times_transposed


class LayerNorm(nn.LayerNorm):
    """torch's layer norm; a `Linear` that follows it keeps nothing of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape, eps = self.normalized_shape, self.eps
        return _remembering(lambda x, weight, bias: F.layer_norm(x, shape, weight, bias, eps), x, self.weight, self.bias)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GPT-2's GELU, by tanh; a `Linear` that follows it keeps nothing of its own."""
    return _remembering(partial(F.gelu, approximate="tanh"), x)


def _remembering(function: Callable, *tensors: torch.Tensor) -> torch.Tensor:
    """function(*tensors), which knows how it was computed."""
    result = function(*tensors)
    if not torch.compiler.is_compiling():
        result.made_by = function, tensors
    return result


class Linear(nn.Linear):
    """torch's linear layer. Its products go where they are fastest (products.py)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        if not torch.is_grad_enabled():
            return times_transposed(x, self.weight, self.bias)
        dtype = autocast_dtype(x)
        x_cast, bias = x.to(dtype), None if self.bias is None else self.bias.to(dtype)
        function, tensors = getattr(x, "made_by", (_itself, (x_cast,)))
        return _LinearFunction.apply(x_cast, self.weight.to(dtype), bias, function, *(tensor.detach() for tensor in tensors))


def _itself(x: torch.Tensor) -> torch.Tensor:
    return x


class _LinearFunction(torch.autograd.Function):
    """x @ weight.T + bias [..., M] of x [..., K], x being function(*tensors), in another dtype perhaps."""

    @staticmethod
    def forward(ctx, x, weight_MK, bias_M, function, *tensors):
        ctx.function, ctx.has_bias = function, bias_M is not None
        ctx.save_for_backward(weight_MK, *tensors)
        return times_transposed(x, weight_MK, bias_M)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        weight_MK, *tensors = ctx.saved_tensors
        outer_NM = outer.flatten(0, -2)
        x_gradient = times_transposed(outer, weight_MK.T) if ctx.needs_input_grad[0] else None
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = product_over_rows(outer_NM, ctx.function(*tensors).to(weight_MK.dtype).flatten(0, -2))
        return x_gradient, weight_gradient, outer_NM.sum(0) if ctx.has_bias else None, None, *(None for _ in tensors)
