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

# Bytes of fp32 logits in one chunk. On a CPU 512 tokens of a 50,257-id vocabulary are as fast as
# 1,024 and a tenth faster than 128; a GPU wants larger products to stay busy.
CHUNK_BYTES = {"cpu": 104 << 20, "cuda": 1 << 30}

# Bytes of fp32 logits whose softmax a CPU takes at a time, so that its passes run in the cache. CPU time for 1,024 tokens of
# width 192, fp32 / bf16: 0.92 / 0.51 s; the whole chunk at once: 0.92 / 0.65 s; with log_softmax in a new tensor instead
# of in place: 1.07 / 0.78 s; the three products alone: 0.80 / 0.37 s.
CPU_CACHE_BYTES = 3 << 20


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
        return torch.cat([F.cross_entropy(logits_RV.float(), targets_R, reduction="none")
                          for hidden_CD, targets_C in _chunks(hidden_ND, targets_N, weight_VD)
                          for logits_RV, targets_R in _rows(hidden_CD @ weight_DV, targets_C)])


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
            buffer_CV = hidden.new_empty(min(_chunk_size(hidden, weight), len(hidden)), len(weight))
            start = 0
            for hidden_CD, targets_C in _chunks(hidden, targets_N, weight):
                logits_CV = torch.mm(hidden_CD, weight.T, out=buffer_CV[:len(targets_C)])
                for logits_RV, targets_R in _rows(logits_CV, targets_C):
                    loss += loss_and_gradient(logits_RV, targets_R)
                gradient_CV = logits_CV  # it has taken their place
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
        factor = outer * ctx.scale  # in place: a second backward pass through here is an error of autograd's
        return hidden_gradient.mul_(factor).to(ctx.dtypes[0]), weight_gradient.mul_(factor).to(ctx.dtypes[1]), None


def loss_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Summed loss (fp32); the logits are overwritten with its gradient by them, softmax minus one-hot."""
    targets_C1 = targets_C[:, None]
    values_CV = logits_CV.float()  # the logits themselves where they are fp32
    largest_C1 = values_CV.amax(1, keepdim=True)
    target_C1 = values_CV.gather(1, targets_C1)
    values_CV.sub_(largest_C1).exp_()
    sum_C1 = values_CV.sum(1, keepdim=True)
    values_CV.div_(sum_C1).scatter_add_(1, targets_C1, values_CV.new_full(targets_C1.shape, -1.0))
    if logits_CV.dtype != torch.float32:
        logits_CV.copy_(values_CV)
    return (sum_C1.log() + largest_C1 - target_C1).sum()


def _product_dtype(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _chunk_size(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> int:
    return max(1, CHUNK_BYTES.get(hidden_ND.device.type, CHUNK_BYTES["cuda"]) // (4 * len(weight_VD)))


def _chunks(hidden_ND: torch.Tensor, targets_N: torch.Tensor, weight_VD: torch.Tensor):
    size = _chunk_size(hidden_ND, weight_VD)
    return zip(hidden_ND.split(size), targets_N.split(size))


def _rows(logits_CV: torch.Tensor, targets_C: torch.Tensor):
    """The rows of a chunk and their targets, as many at a time as fit a CPU's cache; all at once elsewhere."""
    if logits_CV.device.type != "cpu":
        return [(logits_CV, targets_C)]
    size = max(1, CPU_CACHE_BYTES // (4 * logits_CV.shape[1]))
    return zip(logits_CV.split(size), targets_C.split(size))
