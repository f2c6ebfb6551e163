"""Training batches in their order, each prepared by a thread while the one before is trained on.

On a CPU a batch goes through in pieces whose gradients add up: the step is the same, and larger batches need no more
memory. A GPU gets it whole: there large products are what is fast, and a config's batch_size is chosen for its memory.
"""

import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from modules.config import Config
from modules.data.windows import Windows, step_order
from modules.training.parallel import Processes

# Tokens per piece on a CPU: 4,096 at width 192 (mini), fewer for wider models, whose products are large anyway. With
# twice as many a step of mini is no faster, with half as many it is 5 to 9 % slower; gpt1 (width 768) is as fast with
# the fewest as with 4,096.
CPU_NUMBERS, FEWEST_CPU_TOKENS = 4096 * 192, 1536


def pieces_of_a_batch(config: Config, processes: Processes, most_tokens: int | None = None) -> int:
    """Pieces in which each process computes its share of `batch_size` windows; the same number in all of them.

    most_tokens: in a piece; where it is None, what suits the model's width on a CPU.
    """
    if processes.device.type != "cpu":
        return 1
    batch_size, model_params = config.training_params.batch_size, config.model_params
    fewest, most = batch_size // processes.count, -(-batch_size // processes.count)
    most_tokens = most_tokens or max(FEWEST_CPU_TOKENS, CPU_NUMBERS // model_params.embed_dim)
    return min(fewest, -(-most * model_params.context // most_tokens))


def training_batches(
    windows: Windows, config: Config, processes: Processes, first_step: int, pieces: int
) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's parts of micro-batches (inputs, targets), [B, T] int64 on its device, from optimizer step
    `first_step` on, without end.

    A step has `aggregate` micro-batches of `pieces` each. All processes together read the windows that one process
    alone would.
    """
    params = config.training_params
    on_gpu = processes.device.type == "cuda"

    def in_order() -> Iterator[np.ndarray]:
        """The windows of one part after the other."""
        for step in itertools.count(first_step):
            n_orders = len(windows.reading.orders)
            order = step_order(step, config.step_windows, len(windows), params.seed, n_orders)
            for micro_batch in np.split(order, params.aggregate):
                yield from np.array_split(processes.share_of(micro_batch), pieces)

    def prepare() -> tuple[torch.Tensor, torch.Tensor]:
        inputs_BT, targets_BT = windows.batch(next(parts))
        if on_gpu:  # pinned: copied while the GPU computes
            return inputs_BT.pin_memory(), targets_BT.pin_memory()
        return inputs_BT, targets_BT

    parts = in_order()
    with ThreadPoolExecutor(1, "batches") as thread:
        upcoming = thread.submit(prepare)
        while True:
            inputs_BT, targets_BT = upcoming.result()
            upcoming = thread.submit(prepare)
            # Not waited for where it is pinned; elsewhere (Apple) its memory might be another's before it is copied.
            yield (
                inputs_BT.to(processes.device, non_blocking=on_gpu),
                targets_BT.to(processes.device, non_blocking=on_gpu),
            )
