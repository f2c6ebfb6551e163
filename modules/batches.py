"""Training batches in their order, each prepared by a thread while the one before is trained on."""
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from modules.config import TrainingParams
from modules.dataset import Windows, step_order
from modules.parallel import Processes


def training_batches(windows: Windows, params: TrainingParams, processes: Processes, first_step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's micro-batches (inputs, targets), [B, T] int64 on its device, from optimizer step `first_step` on, without end.

    `aggregate` of them make a step. All processes together read the windows that one process alone would.
    """
    step_windows = params.batch_size * params.aggregate
    on_gpu = processes.device.type == "cuda"

    def prepare(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        step, micro_batch = divmod(number, params.aggregate)
        order = step_order(step, step_windows, len(windows), params.seed)
        batch = windows.batch(processes.share_of(order[micro_batch * params.batch_size:(micro_batch + 1) * params.batch_size]))
        return tuple(tensor.pin_memory() for tensor in batch) if on_gpu else batch  # pinned: copied while the GPU computes

    with ThreadPoolExecutor(1, "batches") as thread:
        upcoming = thread.submit(prepare, first_step * params.aggregate)
        for number in itertools.count(first_step * params.aggregate + 1):
            inputs_BT, targets_BT = upcoming.result()
            upcoming = thread.submit(prepare, number)
            yield inputs_BT.to(processes.device, non_blocking=True), targets_BT.to(processes.device, non_blocking=True)
