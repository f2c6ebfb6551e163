"""The training loop, and nothing else.

A step is a function of the weights and moments before it and of its number alone: its
windows, its learning rate and its dropout follow from (seed, step). That is why a run that was
killed and resumed ends with the very weights of one that was not, and why nothing
done between steps (validations, snippets, pictures) can leave a trace in the numbers.

Nothing in a step waits for a GPU: losses stay there until they are logged. A loss that is
not finite is found at the next log or save, and named with its step.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from modules.config import Config
from modules.data.orders import name_of
from modules.data.windows import Windows
from modules.kernels.precision import fp32_products, has_tf32
from modules.models import LanguageModel
from modules.models.evaluate import Interrupted, autocast_for, held_out_losses
from modules.system.errors import UserError
from modules.training.batches import training_batches
from modules.training.graph import StepGraph
from modules.training.history import Stage
from modules.training.parallel import Processes
from modules.training.schedule import lr_at


@dataclass
class Training:
    """What a run consists of while it runs.

    loss_of: (inputs, targets) -> mean loss, over the model shared by all processes. local_gradients: a
    context in which gradients are not yet shared. graph: takes the steps of small models on a GPU. stages: what each
    step was and is trained with. pieces: in which each process computes its share of a micro-batch.
    step: optimizer steps done. validated: the step of the last validation. unlogged: the mean loss of
    each step since the last log, on the device. early_stages_unknown, initial_weights: as in a state.
    """

    config: Config
    processes: Processes
    stages: list[Stage]
    compiled: bool
    windows: Windows
    held_out: Windows
    pieces: int
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    local_gradients: Callable[[], contextlib.AbstractContextManager]
    graph: StepGraph | None = None
    step: int = 0
    validated: int = 0
    unlogged: list[torch.Tensor] = field(default_factory=list)
    early_stages_unknown: bool = False
    initial_weights: dict | None = None

    @property
    def precision(self) -> str:
        """In which products are computed: "fp32" or "bf16"."""
        return self.stages[-1].precision

    @property
    def step_tokens(self) -> int:
        """Tokens that one optimizer step predicts, over all micro-batches and processes."""
        return self.config.step_windows * self.windows.length

    @property
    def lr(self) -> float:
        """Learning rate of the last step done."""
        return lr_at(max(0, self.step - 1), self.config.optim_params)


def steps(training: Training, last_step: int, stop_asked: Callable[[], bool] = lambda: False) -> Iterator[torch.Tensor]:
    """Train step by step up to `last_step` optimizer steps in total, giving this process's part of each step's loss, on
    the device.

    Ends early where `stop_asked()`, asked before each step, answers yes; it must answer the same in all processes.
    """
    training.model.train()
    with contextlib.closing(batches_of(training)) as batches:
        while training.step < last_step and not stop_asked():
            loss = train_step(training, batches)
            training.step += 1
            training.unlogged.append(loss)
            yield loss


def batches_of(training: Training) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
    """Its batches, from its next step on."""
    return training_batches(training.windows, training.config, training.processes, training.step, training.pieces)


def train_step(training: Training, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """One optimizer step on the next `aggregate` micro-batches; this process's part of its loss, on the device."""
    params = training.config.training_params
    for group in training.optimizer.param_groups:
        group["lr"] = lr_at(training.step, training.config.optim_params)
    torch.manual_seed(random_seed(params.seed, training.step, training.processes.rank))
    if training.graph is None:
        return compute_step(training, batches)
    return training.graph.step(list(itertools.islice(batches, params.aggregate * training.pieces)))


def compute_step(training: Training, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """What a step computes, at the optimizer's learning rate, piece by piece.

    Pieces may have unequal numbers of windows: each loss is weighted by its share, so that their sum, and its mean over
    processes, is the batch's.
    """
    params = training.config.training_params
    mean_loss = torch.zeros((), device=training.processes.device)
    pieces = params.aggregate * training.pieces
    with fp32_products(has_tf32(training.processes.device)):
        for piece in range(pieces):
            inputs_BT, targets_BT = next(batches)
            # Gradients are shared once a step: with those of its last piece.
            sharing = contextlib.nullcontext() if piece == pieces - 1 else training.local_gradients()
            with sharing:
                with autocast_for(training.processes.device, training.precision)():
                    share = len(inputs_BT) * training.processes.count / params.batch_size
                    loss = training.loss_of(inputs_BT, targets_BT) * (share / params.aggregate)
                loss.backward()
            mean_loss += loss.detach()
    nn.utils.clip_grad_norm_(training.model.parameters(), training.config.optim_params.grad_clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return mean_loss


def validate(training: Training, stop_asked: Callable[[], bool]) -> tuple[dict, np.ndarray] | None:
    """The entry of the held-out loss for the log, and the mean loss of each held-out window, nats per token, [windows].

    Of a model of several orders it is their mean, with the loss in each beside it, and [orders, windows]. None where
    the run is asked to stop meanwhile, and the validation is owed. Raises UserError where the loss is not finite.
    """
    processes = training.processes
    start = time.perf_counter()
    windows = np.arange(len(training.held_out))
    mine = processes.share_of(windows)
    # Sharded models need all processes to take equally many batches: who has a window less takes one of its own again.
    most = -(-len(windows) // processes.count)
    batch_size = max(1, training.config.valid_batch_size // processes.count)
    totals, by_window = [], []
    for held_out in training.held_out.in_each_order():
        try:
            losses_WT = held_out_losses(
                training.model,
                held_out,
                batch_size,
                processes.device,
                training.precision,
                indices=np.resize(mine, most),
                progress=processes.is_main,
                interrupted=stop_asked,
            )[: len(mine)]
        except Interrupted:
            return None
        totals.append(torch.tensor([losses_WT.sum(dtype=np.float64), losses_WT.size], dtype=torch.float64))
        by_window.append(torch.zeros(len(windows), dtype=torch.float64))
        by_window[-1][torch.from_numpy(mine)] = torch.from_numpy(losses_WT.mean(axis=1))
    sums, tokens = processes.total(torch.stack(totals)).unbind(1)
    losses = (sums / tokens).tolist()
    if not np.isfinite(losses).all():
        raise UserError(f"the held-out loss is {max(losses)} at step {training.step}")
    training.validated = training.step
    loss, speed = sum(losses) / len(losses), int(tokens.sum()) / (time.perf_counter() - start)
    entry = log_entry(training, "valid", loss, speed)
    if len(losses) > 1:
        names = map(name_of, training.held_out.reading.orders)
        entry["losses"] = dict(zip(names, losses, strict=True))
    losses_OW = processes.total(torch.stack(by_window)).numpy()
    return entry, losses_OW if len(losses) > 1 else losses_OW[0]


def log_entry(training: Training, split: str, loss: float, tokens_per_s: float) -> dict:
    """An entry of the log of metrics: `split` is "train" or "valid", the loss in nats per token."""
    return {
        "step": training.step,
        "split": split,
        "loss": loss,
        "lr": training.lr,
        "tokens": training.step * training.step_tokens,
        "tokens_per_s": round(tokens_per_s),
    }


def finite_mean(training: Training) -> float:
    """The mean training loss since the last log; afterwards every process holds each step's global loss.

    Raises UserError where a step's is not finite.
    """
    if not training.unlogged:
        return float("nan")
    unlogged = torch.stack(training.unlogged).cpu().double()  # in this order: Apple's GPUs have no fp64
    losses = training.processes.total(unlogged) / training.processes.count
    training.unlogged = list(losses.float().to(training.processes.device))
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = training.step - len(losses) + int(bad[0])
        raise UserError(
            f"the training loss is {losses[bad[0]].item()} at step {step + 1} (learning rate "
            f"{lr_at(step, training.config.optim_params):.3g}); a smaller lr, a longer warm-up or "
            'precision "fp32" may help'
        )
    return losses.mean().item()


def random_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Clock:
    """Tokens a second of training alone, from one reading to the next."""

    def __init__(self, tokens: int):
        self._tokens, self._since = tokens, time.perf_counter()
        self.last_rate = 0.0

    def rate(self, tokens: int) -> float:
        """Tokens a second since the last call, `tokens` being the count by now."""
        now = time.perf_counter()
        self.last_rate = (tokens - self._tokens) / (now - self._since)
        self._tokens, self._since = tokens, now
        return self.last_rate

    @contextlib.contextmanager
    def paused(self):
        """Time that does not count."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
