"""What the hardware can do, found out before training starts and said in one line.

bf16 is several times faster where the hardware multiplies it (all recent GPUs, CPUs with
AVX512-bf16 or AMX) and sixty times *slower* on a CPU that only emulates it, so "auto" asks the
hardware. What "auto" chose is kept in the state: a run that is resumed, and the run of
the other direction, must not change precision because a machine was busy.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Literal

import torch

from modules.config import Config
from modules.kernels.precision import fp32_products, has_tf32
from modules.models import LanguageModel
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
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return first_device(accelerator)
    there = [
        *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()) if accelerator),
        "cpu",
    ]
    try:
        asked = torch.device(name)
        device = torch.device("cpu" if asked.type == "cpu" and not asked.index else f"{asked.type}:{asked.index or 0}")
    except (RuntimeError, ValueError):
        device = None
    if device is None or str(device) not in there:  # others, such as "meta", torch may know but cannot train on here
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


def first_device(accelerator: torch.device | None) -> torch.device:
    """What a machine with this accelerator trains on: the first GPU of NVIDIA's, AMD's or Apple's, or else the CPU."""
    if accelerator is not None and accelerator.type in ("cuda", "mps"):
        return torch.device(accelerator.type, 0)
    return torch.device("cpu")


def gpus_here(name: str | None) -> list[tuple[str, float]]:
    """The GPUs of NVIDIA's or AMD's among which `-d` leaves the choice, each with its free bytes; none where it says
    another device, or there are none."""
    if not torch.cuda.is_available() or (name is not None and name.partition(":")[0] != "cuda"):
        return []
    everyone = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names = everyone if name in (None, "cuda") else [str(pick_device(name))]
    return [(each, float(torch.cuda.mem_get_info(each)[0])) for each in names]


def in_words(device: torch.device) -> str:
    """What the device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple's GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def pick_precision(config: Config, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of a new run."""
    asked, width = config.training_params.precision, config.model_params.embed_dim
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and width >= NARROWEST_BF16_ON_CPU and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for it. Asked, not timed: a busy machine must not change the answer."""
    able = torch.cpu.get_capabilities()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def pick_compile(asked: bool | str, device: torch.device, pays: bool) -> bool:
    """Whether to compile. "auto": on a GPU, a model for which it pays; torch's recurrent layers are compiled code
    already."""
    return device.type == "cuda" and pays if asked == "auto" else bool(asked)


def compiles(model: LanguageModel, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, autocast: Callable) -> bool:
    """Compile a model's parts, and try them on one batch. False, after a warning, where it fails: such a model is of no
    use any more. Raises torch.OutOfMemoryError where it is the batch that does not fit."""
    # The compiler runs `python -c`, which would import a ctypes.py of the user's from the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    model.compile_parts()
    try:
        with fp32_products(has_tf32(inputs_BT.device)), autocast():
            model.loss(inputs_BT, targets_BT).backward()
        return True
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a broken compiler raises: training goes on without it
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
