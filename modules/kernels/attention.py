"""Causal self-attention: torch's fused kernel or, where a CPU has no good one, batched products.

On a CPU torch's kernel is slow in bf16, and with dropout there is none: torch then keeps several matrices of pairs of
tokens for the backward pass. The products here keep queries, keys and values alone. In bf16 they take 8.7 ms for 4,096
tokens of mini in windows of 256, forward and backward, and the kernel 22.8; in fp32 the kernel is ahead. Scores are
rounded to bf16, as wherever attention is written out under autocast; the kernel rounds probabilities only.

Shapes: B batch, T time, H heads, C channels of a head, D = H C, E = 3 D; S tokens seen so far, the T included; W
windows taken together, N = W H; Q queries taken together, K keys that they see.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from modules.kernels.dropout import Choices, new_seed
from modules.kernels.products import CPU_CACHE_BYTES, eager_on_cpu

QUERIES = 128  # per block; later keys are skipped


def causal_attention(
    qkv_BTE: torch.Tensor, n_heads: int, dropout: float = 0.0, cache_bytes: int = CPU_CACHE_BYTES
) -> torch.Tensor:
    """For each token the mixture of the values up to it [B, T, D]. `qkv_BTE`: queries, keys and values side by side.

    dropout: the part of the mixture's weights that is set to zero at random. cache_bytes: of a CPU, for the scores of
    the windows that are taken together.
    """
    if eager_on_cpu(qkv_BTE) and torch.is_grad_enabled() and (dropout or qkv_BTE.dtype == torch.bfloat16):
        return _AttentionByProducts.apply(qkv_BTE, n_heads, dropout, new_seed() if dropout else 0, cache_bytes)
    q_BHTC, k_BHTC, v_BHTC = _by_head(qkv_BTE, 3, n_heads)
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHTC, v_BHTC, is_causal=True, dropout_p=dropout)
    return y_BHTC.transpose(1, 2).flatten(2)


class KeysAndValues:
    """Those of the tokens that a layer has read, with room for `length` tokens. The memory is taken when the first are
    put in, in their dtype."""

    def __init__(self, length: int):
        self.length = length
        self.tokens = 0  # that have been read
        self._kept_2BHSC: torch.Tensor | None = None

    def with_those_of(self, new_2BHTC: torch.Tensor) -> torch.Tensor:
        """All so far [2, B, H, S, C], those of the next tokens put in."""
        if self._kept_2BHSC is None:
            two, batch, heads, _, channels = new_2BHTC.shape
            self._kept_2BHSC = new_2BHTC.new_empty(two, batch, heads, self.length, channels)
        start, self.tokens = self.tokens, self.tokens + new_2BHTC.shape[3]
        self._kept_2BHSC[:, :, :, start : self.tokens] = new_2BHTC
        return self._kept_2BHSC[:, :, :, : self.tokens]


def attention_to_all_so_far(qkv_BTE: torch.Tensor, n_heads: int, kept: KeysAndValues) -> torch.Tensor:
    """The same mixture [B, T, D] for the next T tokens after those in `kept`, in which they are kept too; without
    gradients."""
    qkv_3BHTC = _by_head(qkv_BTE, 3, n_heads)
    q_BHTC, (k_BHSC, v_BHSC) = qkv_3BHTC[0], kept.with_those_of(qkv_3BHTC[1:])
    tokens, seen = q_BHTC.shape[2], k_BHSC.shape[2]
    # One token sees all; for several the last sees all, each one before it one less.
    later_TS = None if tokens == 1 else q_BHTC.new_full((tokens, seen), -math.inf).triu(seen - tokens + 1)
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BHSC, v_BHSC, attn_mask=later_TS)
    return y_BHTC.transpose(1, 2).flatten(2)


class _AttentionByProducts(torch.autograd.Function):
    """Some windows and queries at a time. The backward pass computes their probabilities once more, and makes the same
    random choices."""

    @staticmethod
    def forward(ctx, qkv_BTE, n_heads, dropout, seed, cache_bytes):
        ctx.n_heads, ctx.dropout, ctx.seed, ctx.cache_bytes = n_heads, dropout, seed, cache_bytes
        ctx.save_for_backward(qkv_BTE)
        y_BTD = qkv_BTE.new_empty(*qkv_BTE.shape[:2], qkv_BTE.shape[2] // 3)
        choices = Choices(dropout, seed)
        for qkv_WTE, y_WTD in _windows(n_heads, cache_bytes, qkv_BTE, y_BTD):
            q_NTC, k_NTC, v_NTC = _by_head(qkv_WTE, 3, n_heads).flatten(1, 2)
            y_NTC = torch.empty_like(q_NTC)
            for start, stop, weights_NQK in _blocks(q_NTC, k_NTC):
                if dropout:
                    weights_NQK *= choices.like(weights_NQK)
                y_NTC[:, start:stop] = weights_NQK @ v_NTC[:, :stop]
            if dropout:
                y_NTC /= 1 - dropout
            _side_by_side(y_NTC[None], y_WTD)
        return y_BTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output_BTD):
        n_heads, dropout = ctx.n_heads, ctx.dropout
        (qkv_BTE,) = ctx.saved_tensors
        gradient_BTE = torch.empty_like(qkv_BTE)
        choices = Choices(dropout, ctx.seed)
        for qkv_WTE, grad_output_WTD, gradient_WTE in _windows(
            n_heads, ctx.cache_bytes, qkv_BTE, grad_output_BTD, gradient_BTE
        ):
            q_NTC, k_NTC, v_NTC = _by_head(qkv_WTE, 3, n_heads).flatten(1, 2)
            (grad_output_NTC,) = _by_head(grad_output_WTD, 1, n_heads).flatten(1, 2)
            if dropout:
                grad_output_NTC = grad_output_NTC / (1 - dropout)
            gradients = q_NTC.new_zeros(3, *q_NTC.shape, dtype=torch.promote_types(q_NTC.dtype, torch.float32))
            q_gradient_NTC, k_gradient_NTC, v_gradient_NTC = gradients
            for start, stop, probabilities_NQK in _blocks(q_NTC, k_NTC):
                grad_output_NQC = grad_output_NTC[:, start:stop]
                weights_NQK, weights_gradient_NQK = probabilities_NQK, grad_output_NQC @ v_NTC[:, :stop].mT
                if dropout:
                    kept_NQK = choices.like(probabilities_NQK)
                    weights_NQK = probabilities_NQK * kept_NQK
                    weights_gradient_NQK *= kept_NQK
                v_gradient_NTC[:, :stop] += weights_NQK.mT @ grad_output_NQC
                # What autograd calls: the formula written out would round to bf16 on the way.
                scores_gradient_NQK = torch.ops.aten._softmax_backward_data(
                    weights_gradient_NQK, probabilities_NQK, -1, probabilities_NQK.dtype
                )
                q_gradient_NTC[:, start:stop] = scores_gradient_NQK @ k_NTC[:, :stop]
                k_gradient_NTC[:, :stop] += scores_gradient_NQK.mT @ q_NTC[:, start:stop]
            gradients[:2] *= _scale(q_NTC)
            _side_by_side(gradients, gradient_WTE)
        return gradient_BTE, None, None, None, None


def _windows(n_heads: int, cache_bytes: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The tensors' windows, as many at a time as the cache holds scores of."""
    n_tokens = tensors[0].shape[1]
    size = max(1, cache_bytes // (n_heads * min(QUERIES, n_tokens) * n_tokens * tensors[0].itemsize))
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _blocks(q_NTC: torch.Tensor, k_NTC: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yields start, stop and probabilities [N, Q, K] of a block of queries; its keys are 0 to stop."""
    n_tokens = q_NTC.shape[1]
    for start in range(0, n_tokens, QUERIES):
        stop = min(start + QUERIES, n_tokens)
        future_QK = q_NTC.new_full((stop - start, stop), -math.inf).triu(start + 1)
        scores_NQK = torch.baddbmm(future_QK, q_NTC[:, start:stop], k_NTC[:, :stop].mT, alpha=_scale(q_NTC))
        yield start, stop, scores_NQK.softmax(-1)


def _scale(q_NTC: torch.Tensor) -> float:
    """What keeps scores of any width alike."""
    return q_NTC.shape[-1] ** -0.5


def _by_head(x_WTE: torch.Tensor, parts: int, n_heads: int) -> torch.Tensor:
    """The parts that lie side by side, head by head: [parts, W, H, T, C]."""
    return x_WTE.unflatten(-1, (parts, n_heads, -1)).permute(2, 0, 3, 1, 4)


def _side_by_side(x_PNTC: torch.Tensor, out_WTE: torch.Tensor) -> None:
    """The opposite of `_by_head` and its flattening, into `out_WTE`."""
    parts, n_windows = len(x_PNTC), len(out_WTE)
    out_WTE.unflatten(-1, (parts, x_PNTC.shape[1] // n_windows, -1)).copy_(
        x_PNTC.unflatten(1, (n_windows, -1)).permute(1, 3, 0, 2, 4)
    )
