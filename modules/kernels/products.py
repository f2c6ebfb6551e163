"""Matrix products in fp32 on a CPU, by oneDNN: what a step spends most of its time on.

torch gives fp32 products to MKL, which on AMD's processors does not use AVX-512. oneDNN, which is in torch as well
(bf16 goes there), does. GFLOP/s of two Zen 5 cores, MKL and oneDNN: logits of 512 tokens of width 192 over 50,257 ids
173 and 433, their gradients 192-202 and 425-440, a layer of 768 x 3,072 210 and 400-450; with oneDNN held to AVX2 still
5-25 % ahead. The results are fp32 to the same last digits.

`torch.ops.mkldnn._linear_pointwise` is what torch.compile itself emits for a linear layer at inference. It is not
public, so it is asked for by name, and everything else (GPUs, bf16, other processors, compiled code) goes the usual
way.

Shapes: N rows, K inputs, M outputs.
"""

import torch
import torch.nn.functional as F

HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)

# Bytes that stay in a CPU's cache, for elementwise work: 30 fp32 rows of 50,257 logits. The softmax of 512 rows takes
# 6 ms in such portions, and 9 ms four rows at a time.
CPU_CACHE_BYTES = 6 << 20


def eager_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether work on this tensor is done here and now, by a CPU: what torch is slow at there may then be done
    otherwise."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def for_onednn(tensor: torch.Tensor) -> bool:
    """Whether products of this tensor are faster in oneDNN."""
    return (
        HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and eager_on_cpu(tensor)
        and tensor.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def times_transposed(a_NK: torch.Tensor, b_MK: torch.Tensor, bias_M: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b.T + bias [N, M], without gradients; `a` may have more dimensions in front. For an a @ b give b's transposed
    view: oneDNN reads either layout as fast."""
    if for_onednn(a_NK):
        return torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, bias_M, "none", [], "")
    return F.linear(a_NK, b_MK, bias_M)


def product_over_rows(a_NM: torch.Tensor, b_NK: torch.Tensor) -> torch.Tensor:
    """a.T @ b [M, K], without gradients. oneDNN copies its first operand to transpose it: the narrower goes first."""
    if for_onednn(a_NM) and b_NK.shape[1] < a_NM.shape[1]:
        return times_transposed(b_NK.T, a_NM.T).T.contiguous()
    return times_transposed(a_NM.T, b_NK.T)


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which autocast multiplies this tensor; its own where autocast is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
