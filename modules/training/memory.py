"""Whether a model fits the machine, said before any memory is asked for.

Else the kernel ends the process without a word, maybe after minutes of swapping.
"""

import contextlib
import math
import os
import sys
from pathlib import Path

import torch

from modules.config import Config
from modules.models import count_parameters
from modules.system.errors import UserError
from modules.system.processes import control_groups, limits, this_process
from modules.training.parallel import Processes

STATE_BYTES = 16  # of a parameter in training: weight, gradient and two moments, in fp32
WEIGHT_BYTES = 4
GIB = 2**30


def check_memory(config: Config, processes: Processes, there: float | None = None) -> None:
    """Refuse a model whose weights, gradients and moments this machine does not hold: UserError. `config.model` must be
    set.

    there: bytes of this machine; what it tells itself where it is None. What activations need comes on top, and depends
    on the batch: `--dry_run` measures it.
    """
    parameters = count_parameters(config.trained_model, **config.model_arguments)
    shards = processes.count if config.training_params.parallel == "fsdp" else 1
    here = this_process().local_world_size
    trained = STATE_BYTES * parameters / shards
    # Each process builds the whole model in the machine's memory, before it is sent to a GPU or cut into shards.
    built = WEIGHT_BYTES * parameters
    on_gpu = processes.device.type == "cuda"
    asked = [
        (f"{here} process(es) of this machine", here * max(built, 0 if on_gpu else trained), there or machine_memory())
    ]
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(processes.device)
        asked.append((str(processes.device), trained, free + torch.cuda.memory_reserved(processes.device)))
    for who, needed, had in asked:
        if needed > had:
            raise UserError(
                f"{config.name}: {parameters:,} parameters are too many here: {who} would need {needed / GIB:,.1f} GiB "
                f"for weights, gradients and optimizer, and there are {had / GIB:,.1f} GiB; make embed_dim, n_layers "
                'or vocab_size smaller, or give the model more devices with "parallel": "fsdp"'
            )


def machine_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may have: memory and swap of the machine, or less where its container or its limits
    (ulimit -v) say so.

    Infinite where the system does not tell (Windows).
    """
    try:
        memory, swap = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), _swap(root)
    except (AttributeError, ValueError, OSError):
        return math.inf
    found = [memory + swap]
    for group in control_groups("memory", root):
        found.append(limits(group / "memory.max")[0] + min(swap, limits(group / "memory.swap.max")[0]))
        found.append(
            limits(group / "memory.limit_in_bytes")[0] + swap
        )  # the files of version 1, of which the second counts both
        found.append(limits(group / "memory.memsw.limit_in_bytes")[0])
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
        found.append(math.inf if address_space == resource.RLIM_INFINITY else float(address_space))
    return min(found)


def available_memory(root: Path = Path("/")) -> float:
    """Bytes that new processes may take without pushing anybody's out: what the machine has free, or less where the
    container allows no more.

    Where the system does not tell what is free (macOS), all of its memory; infinite where not even that (Windows).
    """
    try:
        found = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    except (AttributeError, ValueError, OSError):
        return math.inf
    found.append(_of_meminfo("MemAvailable", root, math.inf))
    for group in control_groups("memory", root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):
                found.append(limits(group / limit)[0] - float((group / used).read_text()) + _cache_of(group))
    return max(0.0, min(found))


def _cache_of(group: Path) -> float:
    """Bytes of files that a control group counts as its own, and that go where memory is asked for."""
    words = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    return float(words.get("total_inactive_file", words.get("inactive_file", 0)))


def _swap(root: Path) -> float:
    """Bytes of swap; 0 where there is none, or where the system keeps it elsewhere (macOS grows it as needed: then
    infinite)."""
    if sys.platform == "darwin":
        return math.inf
    return _of_meminfo("SwapTotal", root, 0.0)


def _of_meminfo(name: str, root: Path, default: float) -> float:
    """Bytes that Linux has under this name; `default` where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), default)
    return default
