"""Cross-entropy of a vocabulary head that never holds the logits of all tokens.

At a vocabulary of 50,257 the logits are what fills the memory: 4,096 tokens need 0.8 GB,
and the usual step holds them four times over (logits, log-softmax, and the gradients
of both). Here the tokens go through in chunks, and the gradient of a chunk is
computed while its probabilities are at hand, so that one chunk lives at a time.

torch.nn.functional.linear_cross_entropy does the same, and in fp32 equally fast. It is
not used because with bf16 inputs it returns the loss in bf16 (three digits: 10.875 for
10.863), which is coarser than the 1 % that this project measures. Here the loss is
always summed in fp32.

Shapes: N tokens, D width, V vocabulary.
"""
import torch
import torch.nn.functional as F

# Bytes of fp32 logits in one chunk. On a CPU 1,024 tokens of a 50,257-id vocabulary were the fastest of
# 64 to 4,096; a GPU wants larger products to stay busy.
CHUNK_BYTES = {"cpu": 208 << 20, "cuda": 1 << 30}


def mean_loss(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token (scalar, fp32), with gradients for `hidden_ND` and `weight_VD`.

    Equal to `cross_entropy(hidden_ND @ weight_VD.T, targets_N)`. Products run in the autocast dtype where autocast is on.
    """
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N)


@torch.no_grad()
def token_losses(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token in nats [N], fp32, without gradients."""
    dtype = _product_dtype(hidden_ND)
    hidden_ND, weight_DV = hidden_ND.to(dtype), weight_VD.to(dtype).T
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return torch.cat([F.cross_entropy((hidden_CD @ weight_DV).float(), targets_C, reduction="none")
                          for hidden_CD, targets_C in _chunks(hidden_ND, targets_N, weight_VD)])


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N):
        if not any(ctx.needs_input_grad):
            return token_losses(hidden_ND, weight_VD, targets_N).mean()
        dtype = _product_dtype(hidden_ND)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            loss = torch.zeros((), device=hidden.device)
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            start = 0
            for hidden_CD, targets_C in _chunks(hidden, targets_N, weight):
                chunk_loss, gradient_CV = loss_and_gradient(hidden_CD @ weight.T, targets_C)
                loss += chunk_loss
                torch.mm(gradient_CV, weight, out=hidden_gradient[start:start + len(targets_C)])
                if dtype == torch.float32:
                    weight_gradient.addmm_(gradient_CV.T, hidden_CD)
                else:
                    weight_gradient += gradient_CV.T @ hidden_CD
                start += len(targets_C)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.scale, ctx.dtypes = 1 / len(targets_N), (hidden_ND.dtype, weight_VD.dtype)
        return loss * ctx.scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        factor = outer * ctx.scale
        return (hidden_gradient * factor).to(ctx.dtypes[0]), (weight_gradient * factor).to(ctx.dtypes[1]), None


def loss_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (fp32) and its gradient by the logits: softmax minus one-hot [C, V], in the logits' dtype."""
    targets_C1 = targets_C[:, None]
    log_probability_CV = torch.log_softmax(logits_CV, -1, dtype=torch.float32)
    loss = -log_probability_CV.gather(1, targets_C1).sum()
    gradient_CV = log_probability_CV.exp_()
    gradient_CV.scatter_add_(1, targets_C1, gradient_CV.new_full(targets_C1.shape, -1.0))
    return loss, gradient_CV.to(logits_CV.dtype)


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _chunks(hidden_ND: torch.Tensor, targets_N: torch.Tensor, weight_VD: torch.Tensor):
    size = max(1, CHUNK_BYTES.get(hidden_ND.device.type, CHUNK_BYTES["cuda"]) // (4 * len(weight_VD)))
    return zip(hidden_ND.split(size), targets_N.split(size))
