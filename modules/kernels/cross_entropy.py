"""Cross-entropy of a vocabulary head that never holds the logits of all tokens.

At a vocabulary of 50,257 the logits are what fills the memory: 4,096 tokens need 0.8 GB,
and the usual step holds them four times over (logits, log-softmax, and the gradients
of both). Here the tokens go through in chunks, and the gradient of a chunk is
computed while its probabilities are at hand, so that one chunk lives at a time.

torch.nn.functional.linear_cross_entropy does the same. It is not used because with bf16
inputs it returns the loss in bf16 (three digits: 10.875 for 10.863), which is coarser than
the 1 % that this project measures, and because its products in fp32 take twice as long
(products.py). Here the loss is always summed in fp32.

Shapes: N tokens, C of them in a chunk, R rows of a chunk that fit a cache, D width, V vocabulary, P the rows of the
weight, those that a GPU is given besides included; G rows of a D x P matrix that hold as many numbers as a chunk of
logits.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from modules.kernels.products import CPU_CACHE_BYTES, autocast_dtype, for_onednn, times_transposed

# Bytes of logits in one chunk. On a CPU that is 540 tokens in fp32, of a 50,257-id vocabulary, and 1,080 in bf16: a
# step of mini is 6 % faster than with half as many, and no faster with twice as many. A GPU wants larger products to
# stay busy.
CHUNK_BYTES = {"cpu": 104 << 20, "cuda": 512 << 20}

# A GPU's tensor cores want rows that begin at a multiple of 16 bytes, and full tiles. Without rows of zeros up to
# 50,304 the products of GPT-2's head are several times slower (nanoGPT trains 50,304 ids for that).
ROWS_MULTIPLE = {"cpu": 1, "cuda": 64}

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
    vocabulary = len(weight_VD)
    hidden_ND, weight_PD = _for_products(hidden_ND, weight_VD)
    size = _rows_of_a_chunk(weight_PD, chunk_bytes or chunk_bytes_on(hidden_ND.device))
    losses = []
    with torch.autocast(hidden_ND.device.type, enabled=False):
        buffer_CP = _buffer(hidden_ND, weight_PD, size)
        for hidden_CD, targets_C in _portions(size, hidden_ND, targets_N):
            logits_CV = _logits(hidden_CD, weight_PD, buffer_CP)[:, :vocabulary]
            for logits_RV, targets_R in _in_cache(logits_CV, targets_C):
                losses.append(F.cross_entropy(logits_RV.float(), targets_R, reduction="none"))
        return torch.cat(losses)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, pointwise, chunk_bytes):
        if not any(ctx.needs_input_grad):
            return token_losses(hidden_ND, weight_VD, targets_N, chunk_bytes).mean()
        ctx.scale, ctx.dtypes = 1 / len(targets_N), (hidden_ND.dtype, weight_VD.dtype)
        ctx.vocabulary = len(weight_VD)
        hidden_ND, weight_PD = _for_products(hidden_ND, weight_VD)
        size = _rows_of_a_chunk(weight_PD, chunk_bytes)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_gradient_ND = torch.empty_like(hidden_ND)
            # The other way round than the weight, for which CPUs have the faster product: 12 ms a chunk in bf16 against
            # 27.
            weight_gradient_DP = hidden_ND.new_zeros(weight_PD.T.shape, dtype=torch.float32)
            buffer_CP = _buffer(hidden_ND, weight_PD, size)
            loss = 0
            for hidden_CD, targets_C, hidden_gradient_CD in _portions(size, hidden_ND, targets_N, hidden_gradient_ND):
                logits_CP = _logits(hidden_CD, weight_PD, buffer_CP)
                chunk_loss = 0
                for logits_RV, targets_R in _in_cache(logits_CP[:, : ctx.vocabulary], targets_C):
                    chunk_loss = chunk_loss + pointwise(logits_RV, targets_R)
                loss = loss + chunk_loss
                gradient_CP = logits_CP  # it has taken their place; of ids that there are not, both are 0
                hidden_gradient_CD.copy_(times_transposed(gradient_CP, weight_PD.T))
                _add_product(weight_gradient_DP, hidden_CD.T, gradient_CP.T, size)
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_DP)
        return loss * ctx.scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        hidden_gradient_ND, weight_gradient_DP = ctx.saved_tensors
        factor = grad_output * ctx.scale  # in place: a second backward pass through here is an error of autograd's
        # Transposed here: autograd would do it too, at a third of the speed.
        weight_gradient_VD = weight_gradient_DP.mul_(factor)[:, : ctx.vocabulary].T.contiguous()
        return hidden_gradient_ND.mul_(factor).to(ctx.dtypes[0]), weight_gradient_VD.to(ctx.dtypes[1]), None, None, None


def _add_product(total_DP: torch.Tensor, a_DC: torch.Tensor, b_PC: torch.Tensor, size: int) -> None:
    """Add a @ b.T to the total, `size` rows at a time; on an NVIDIA GPU in one kernel, unrounded."""
    if total_DP.device.type == "cuda":
        if a_DC.dtype == total_DP.dtype:
            total_DP.addmm_(a_DC, b_PC.T)
        else:
            torch.addmm(total_DP, a_DC, b_PC.T, out_dtype=total_DP.dtype, out=total_DP)
        return
    for total_GP, a_GC in _portions(size, total_DP, a_DC.contiguous()):
        for total_RP, product_RP in _in_cache(total_GP, times_transposed(a_GC, b_PC)):
            total_RP += product_RP  # in bf16 it is cast to fp32 first, which by pieces takes no memory


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
    if torch.compiler.is_compiling():  # one kernel with the softmax and the copy
        ids_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
        probabilities_CV = probabilities_CV - (ids_V == targets_C1)
    else:
        probabilities_CV.scatter_add_(1, targets_C1, probabilities_CV.new_full(targets_C1.shape, -1.0))
    if probabilities_CV is not logits_CV:
        logits_CV.copy_(probabilities_CV)
    return loss


def _for_products(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the dtype of the products, the weight [P, D] with a GPU's rows of zeros."""
    dtype = autocast_dtype(hidden_ND)
    weight_PD = weight_VD.to(dtype)
    missing = -len(weight_PD) % ROWS_MULTIPLE.get(weight_PD.device.type, ROWS_MULTIPLE["cuda"])
    if missing:
        weight_PD = F.pad(weight_PD, (0, 0, 0, missing))
    return hidden_ND.to(dtype), weight_PD


def chunk_bytes_on(device: torch.device) -> int:
    """Bytes of the logits of a full chunk; a device of another kind is treated as a GPU."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])


def _rows_of_a_chunk(weight_PD: torch.Tensor, chunk_bytes: int) -> int:
    """Rows of P numbers that fill a chunk: tokens, of logits."""
    return max(1, chunk_bytes // (weight_PD.itemsize * len(weight_PD)))


def _portions(size: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The tensors' rows, `size` at a time."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _buffer(hidden_ND: torch.Tensor, weight_PD: torch.Tensor, size: int) -> torch.Tensor | None:
    """Memory for the logits of a chunk, one after the other; None for oneDNN, which takes its own (and gets the same
    again, see devices.py)."""
    if for_onednn(hidden_ND):
        return None
    return hidden_ND.new_empty(min(size, len(hidden_ND)), len(weight_PD))


def _logits(hidden_CD: torch.Tensor, weight_PD: torch.Tensor, buffer_CP: torch.Tensor | None) -> torch.Tensor:
    """Logits of a chunk [C, P]; the chunk's before are lost where there is a buffer."""
    if buffer_CP is None:
        return times_transposed(hidden_CD, weight_PD)
    return torch.mm(hidden_CD, weight_PD.T, out=buffer_CP[: len(hidden_CD)])


def _in_cache(rows_CV: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows of all, as many at a time as fit a CPU's cache in fp32; all at once elsewhere."""
    size = len(rows_CV) if rows_CV.device.type != "cpu" else max(1, CPU_CACHE_BYTES // (4 * rows_CV.shape[1]))
    return _portions(size, rows_CV, *tensors)
