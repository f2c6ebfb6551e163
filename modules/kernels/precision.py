"""In which precision a GPU multiplies fp32: its own, or TF32, which has ten bits of mantissa and up to eight times the
speed.

torch keeps this choice for the whole process, and the two differ by more than the digits of a loss that is reported.
So it is made for a block of code: training steps may use TF32, and whatever is evaluated never does.
"""

import contextlib
from collections.abc import Iterator

import torch


def has_tf32(device: torch.device) -> bool:
    """Whether training on this device multiplies fp32 in TF32: an NVIDIA GPU since Ampere."""
    return device.type == "cuda" and torch.cuda.is_tf32_supported()


@contextlib.contextmanager
def fp32_products(tf32: bool) -> Iterator[None]:
    """Within the block products of fp32 are in TF32, or in fp32 itself; afterwards they are what they were before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32  # the latter is for recurrent layers
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
