"""Layers of a model. A linear layer after a norm or a GELU keeps what went into that, not what came out.

Autograd keeps the input of each of these three for the backward pass. The input of the linear layer is the output of the norm or
GELU before it, and follows from theirs: here it is computed once more instead of kept, so that of a block of width D there stay
10 D numbers a token instead of 16 D. A step takes 2 to 5 % longer on a CPU for that (most of it the GELU).
Under torch.compile the layers are torch's own: the compiler makes the same choice by itself.

Shapes: N rows, K inputs, M outputs.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from modules.products import autocast_dtype, product_over_rows, times_transposed


class LayerNorm(nn.LayerNorm):
    """torch's layer norm; a `Linear` that follows it keeps nothing of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _remembering(F.layer_norm, x, self.normalized_shape, self.weight, self.bias, self.eps)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GPT-2's GELU, by tanh; a `Linear` that follows it keeps nothing of its own."""
    return _remembering(_tanh_gelu, x)


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _remembering(function: Callable, *arguments) -> torch.Tensor:
    """function(*arguments), which knows how it was computed."""
    result = function(*arguments)
    if not torch.compiler.is_compiling():
        result.made_by = function, arguments
    return result


class Linear(nn.Linear):
    """torch's linear layer. Its products go where they are fastest (products.py)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        if not torch.is_grad_enabled():
            return times_transposed(x, self.weight, self.bias)
        function, arguments = getattr(x, "made_by", (_itself, (x,)))
        arguments = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        dtype = autocast_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _LinearFunction.apply(x.to(dtype), self.weight.to(dtype), bias, function, *arguments)


def _itself(x: torch.Tensor) -> torch.Tensor:
    return x


class _LinearFunction(torch.autograd.Function):
    """x @ weight.T + bias [..., M] of x [..., K], x being function(*arguments), in another dtype perhaps."""

    @staticmethod
    def forward(ctx, x, weight_MK, bias_M, function, *arguments):
        ctx.function, ctx.has_bias = function, bias_M is not None
        ctx.others = [None if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        ctx.save_for_backward(weight_MK, *(argument for argument in arguments if isinstance(argument, torch.Tensor)))
        return times_transposed(x.flatten(0, -2), weight_MK, bias_M).unflatten(0, x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        weight_MK, *tensors = ctx.saved_tensors
        outer_NM = outer.flatten(0, -2)
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = times_transposed(outer_NM, weight_MK.T).unflatten(0, outer.shape[:-1])
        if ctx.needs_input_grad[1]:
            x_NK = ctx.function(*(tensors.pop(0) if other is None else other for other in ctx.others)).flatten(0, -2).to(weight_MK.dtype)
            weight_gradient = product_over_rows(outer_NM, x_NK)
        return x_gradient, weight_gradient, outer_NM.sum(0) if ctx.has_bias else None, None, *(None for _ in ctx.others)
