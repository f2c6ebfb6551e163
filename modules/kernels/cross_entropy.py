"""Cross-entropy of a vocabulary head that never holds the logits of all tokens.

At a vocabulary of 50,257 the logits are what fills the memory: 4,096 tokens need 0.8 GB,
and the usual step holds them four times over (logits, log-softmax, and the gradients
of both). Here the tokens go through in chunks, and the gradient of a chunk is
computed while its probabilities are at hand, so that one chunk lives at a time.

torch.nn.functional.linear_cross_entropy does the same. It is not used because with bf16
inputs it returns the loss in bf16 (three digits: 10.875 for 10.863), which is coarser than
the 1 % that this project measures, and because its products in fp32 take twice as long
(products.py). Here the loss is always summed in fp32.

Shapes: N tokens, C of them in a chunk, R rows of a chunk that fit a cache, D width, V vocabulary; G rows of a D x V
matrix that hold as many numbers as a chunk of logits.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from modules.kernels.products import CPU_CACHE_BYTES, autocast_dtype, for_onednn, times_transposed

# Bytes of logits in one chunk. On a CPU that is 540 tokens in fp32, of a 50,257-id vocabulary, and 1,080 in bf16: a
# step of mini is 6 % faster than with half as many, and no faster with twice as many. A GPU wants larger products to
# stay busy.
CHUNK_BYTES = {"cpu": 104 << 20, "cuda": 512 << 20}

SMALLEST = torch.finfo(torch.float32).tiny


def mean_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    pointwise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Mean cross-entropy in nats per token (scalar, fp32), with gradients for `hidden_ND` and `weight_VD`.

    Equal to `cross_entropy(hidden_ND @ weight_VD.T, targets_N)`. Products run in the autocast dtype where autocast is
    on. pointwise: `loss_and_gradient`, maybe compiled. chunk_bytes: of the logits of a chunk; CHUNK_BYTES where it is
    None.
    """
    chunk_bytes = chunk_bytes or chunk_bytes_on(hidden_ND.device)
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, pointwise or loss_and_gradient, chunk_bytes)


@torch.no_grad()
def token_losses(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, chunk_bytes: int | None = None
) -> torch.Tensor:
    """Cross-entropy of every token in nats [N], fp32, without gradients."""
    hidden_ND, weight_VD = _for_products(hidden_ND, weight_VD)
    size = _rows_of_a_chunk(weight_VD, chunk_bytes or chunk_bytes_on(hidden_ND.device))
    losses = []
    with torch.autocast(hidden_ND.device.type, enabled=False):
        buffer_CV = _buffer(hidden_ND, weight_VD, size)
        for hidden_CD, targets_C in _portions(size, hidden_ND, targets_N):
            for logits_RV, targets_R in _in_cache(_logits(hidden_CD, weight_VD, buffer_CV), targets_C):
                losses.append(F.cross_entropy(logits_RV.float(), targets_R, reduction="none"))
        return torch.cat(losses)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, pointwise, chunk_bytes):
        if not any(ctx.needs_input_grad):
            return token_losses(hidden_ND, weight_VD, targets_N, chunk_bytes).mean()
        ctx.scale, ctx.dtypes = 1 / len(targets_N), (hidden_ND.dtype, weight_VD.dtype)
        hidden_ND, weight_VD = _for_products(hidden_ND, weight_VD)
        size = _rows_of_a_chunk(weight_VD, chunk_bytes)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_gradient_ND = torch.empty_like(hidden_ND)
            # The other way round than the weight, for which CPUs have the faster product: 12 ms a chunk in bf16 against
            # 27.
            weight_gradient_DV = hidden_ND.new_zeros(weight_VD.T.shape, dtype=torch.float32)
            buffer_CV = _buffer(hidden_ND, weight_VD, size)
            loss = 0
            for hidden_CD, targets_C, hidden_gradient_CD in _portions(size, hidden_ND, targets_N, hidden_gradient_ND):
                logits_CV = _logits(hidden_CD, weight_VD, buffer_CV)
                chunk_loss = 0
                for logits_RV, targets_R in _in_cache(logits_CV, targets_C):
                    chunk_loss = chunk_loss + pointwise(logits_RV, targets_R)
                loss = loss + chunk_loss
                gradient_CV = logits_CV  # it has taken their place
                hidden_gradient_CD.copy_(times_transposed(gradient_CV, weight_VD.T))
                _add_product(weight_gradient_DV, hidden_CD.T.contiguous(), gradient_CV.T, size)
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_DV)
        return loss * ctx.scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        hidden_gradient_ND, weight_gradient_DV = ctx.saved_tensors
        factor = grad_output * ctx.scale  # in place: a second backward pass through here is an error of autograd's
        # Transposed here: autograd would do it too, at a third of the speed.
        weight_gradient_VD = weight_gradient_DV.mul_(factor).T.contiguous()
        return hidden_gradient_ND.mul_(factor).to(ctx.dtypes[0]), weight_gradient_VD.to(ctx.dtypes[1]), None, None, None


def _add_product(total_DV: torch.Tensor, a_DC: torch.Tensor, b_VC: torch.Tensor, size: int) -> None:
    """Add a @ b.T to the total, `size` rows at a time."""
    for total_GV, a_GC in _portions(size, total_DV, a_DC):
        for total_RV, product_RV in _in_cache(total_GV, times_transposed(a_GC, b_VC)):
            total_RV += product_RV  # in bf16 it is cast to fp32 first, which by pieces takes no memory


def loss_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Returns the summed loss (fp32); overwrites the logits with their gradient, softmax minus one-hot.

    One kernel makes the probabilities, and the loss is their logarithm: at half the time of maximum, exponential and
    sum one after the other. A probability too small for fp32 counts as its smallest, a loss of 87 nats (the gradient is
    not touched by that).
    """
    targets_C1 = targets_C[:, None]
    if logits_CV.dtype == torch.float32:
        probabilities_CV = torch.softmax(logits_CV, 1, out=logits_CV)
    else:
        probabilities_CV = torch.softmax(logits_CV, 1, dtype=torch.float32)
    loss = -probabilities_CV.gather(1, targets_C1).clamp_min(SMALLEST).log().sum()
    probabilities_CV.scatter_add_(1, targets_C1, probabilities_CV.new_full(targets_C1.shape, -1.0))
    if logits_CV.dtype != torch.float32:
        logits_CV.copy_(probabilities_CV)
    return loss


def _for_products(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the dtype of the products."""
    dtype = autocast_dtype(hidden_ND)
    return hidden_ND.to(dtype), weight_VD.to(dtype)


def chunk_bytes_on(device: torch.device) -> int:
    """Bytes of the logits of a full chunk; a device of another kind is treated as a GPU."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])


def _rows_of_a_chunk(weight_VD: torch.Tensor, chunk_bytes: int) -> int:
    """Rows of V numbers that fill a chunk: tokens, of logits."""
    return max(1, chunk_bytes // (weight_VD.itemsize * len(weight_VD)))


def _portions(size: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The tensors' rows, `size` at a time."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _buffer(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, size: int) -> torch.Tensor | None:
    """Memory for the logits of a chunk, one after the other; None for oneDNN, which takes its own (and gets the same
    again, see devices.py)."""
    if for_onednn(hidden_ND):
        return None
    return hidden_ND.new_empty(min(size, len(hidden_ND)), len(weight_VD))


def _logits(hidden_CD: torch.Tensor, weight_VD: torch.Tensor, buffer_CV: torch.Tensor | None) -> torch.Tensor:
    """Logits of a chunk [C, V]; the chunk's before are lost where there is a buffer."""
    if buffer_CV is None:
        return times_transposed(hidden_CD, weight_VD)
    return torch.mm(hidden_CD, weight_VD.T, out=buffer_CV[: len(hidden_CD)])


def _in_cache(rows_CV: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows of all, as many at a time as fit a CPU's cache in fp32; all at once elsewhere."""
    size = len(rows_CV) if rows_CV.device.type != "cpu" else max(1, CPU_CACHE_BYTES // (4 * rows_CV.shape[1]))
    return _portions(size, rows_CV, *tensors)
