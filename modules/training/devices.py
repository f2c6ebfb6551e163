"""What the hardware can do, found out before training starts and said in one line.

bf16 is several times faster where the hardware multiplies it (all recent GPUs, CPUs with
AVX512-bf16 or AMX) and sixty times *slower* on a CPU that only emulates it, so "auto" asks the
hardware. What "auto" chose is kept in the state: a run that is resumed, and the run of
the other direction, must not change precision because a machine was busy.
"""

import contextlib
import ctypes
import os

import torch
from torch import nn

from modules.kernels import cross_entropy as loss
from modules.system import console
from modules.system.errors import UserError

# Below this width a CPU's time goes into small operations, which autocast only makes more of: on AVX512-bf16 cores a
# step in bf16 is 0.56 times as fast as in fp32 at width 64, 0.76 at 128, 1.40 at 192, 1.42 at 256 (three layers,
# vocabulary 1,024).
NARROWEST_BF16_ON_CPU = 192
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's names for them (malloc.h)


def pick_device(name: str | None) -> torch.device:
    """The device called `name` ('cuda:0', 'cpu', ...); without a name the first GPU, or else the CPU.

    Raises UserError where there is no such device.
    """
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = [
        *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()) if accelerator),
        "cpu",
    ]
    try:
        asked = torch.device(name)
        device = torch.device("cpu" if asked.type == "cpu" and not asked.index else f"{asked.type}:{asked.index or 0}")
    except (RuntimeError, ValueError):
        device = None
    if str(device) not in there:  # others, such as "meta", torch may know but cannot train on here
        reason = (
            ""
            if torch.cuda.is_available() or "cuda" not in name
            else "; this torch sees no GPU (a CPU build, or no driver: see the README's installation)"
        )
        raise UserError(f"no device '{name[:40]}' here; there is {', '.join(there)}{reason}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device '{name}' does not work: {str(error).splitlines()[0]}") from None
    return device


def pick_precision(asked: str, device: torch.device, width: int) -> str:
    """ "fp32" or "bf16" for what a config asks ("auto", "fp32", "bf16") of a model of `width`."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and width >= NARROWEST_BF16_ON_CPU and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for it. Asked, not timed: a busy machine must not change the answer."""
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def pick_compile(asked: bool | str, device: torch.device, model_name: str) -> bool:
    """Whether to compile. "auto": a GPT on a GPU; torch's recurrent layers are compiled code already."""
    if asked != "auto":
        return asked
    return device.type == "cuda" and model_name == "gpt"


def compile_model(model: nn.Module, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, autocast) -> bool:
    """Compile the blocks of a GPT and the loss's pointwise part; tried on one batch. False, after a warning, where it
    fails.

    Block by block, not as a whole: compiled once and used by all layers, and the gradients
    of a layer are ready for communication while the layer before is still computing.
    """
    os.environ["PYTHONSAFEPATH"] = (
        "1"  # the compiler runs `python -c`, which would import a ctypes.py of the user's from the working folder
    )
    blocks = list(getattr(model, "blocks", []))
    pointwise = loss.loss_and_gradient
    for block in blocks:
        block.compile()
    loss.loss_and_gradient = torch.compile(pointwise, dynamic=False)
    try:
        with autocast():
            model.loss(inputs_BT, targets_BT).backward()
        return True
    except Exception as error:  # whatever a broken compiler raises: training goes on without it
        for block in blocks:
            block._compiled_call_impl = None
        loss.loss_and_gradient = pointwise
        console.warn_once(f"torch.compile does not work here, training without it: {console.reason(error)}")
        return False
    finally:
        model.zero_grad(set_to_none=True)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU under Linux, let glibc keep the large blocks that a step frees for the next step.

    By default it gives them back to the kernel at each free and gets them again page by page: 5 % of a step of mini.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library: its own ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def allow_tf32(device: torch.device) -> None:
    """Let a GPU multiply fp32 in TF32: ten bits of mantissa, up to eight times the speed."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
