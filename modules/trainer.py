"""The training loop, and nothing else.

A step is a function of the weights and moments before it and of its number alone: its
windows, its learning rate and its dropout follow from (seed, step). That is why a run that was
killed and resumed ends with the very weights of one that was not, and why nothing
done between steps (validations, snippets, pictures) can leave a trace in the numbers.

Nothing in a step waits for a GPU: losses stay there until they are logged. A loss that is
not finite is found at the next log or save, and named with its step.
"""
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from modules.batches import pieces_of_a_batch, training_batches
from modules.config import Config
from modules.dataset import Windows
from modules.errors import UserError
from modules.evaluate import Interrupted, autocast_for, held_out_losses
from modules.parallel import Processes
from modules.schedule import lr_at


@dataclass
class Training:
    """What a run consists of while it runs.

    loss_of: (inputs, targets) -> mean loss, over the model shared by all processes. local_gradients: a
    context in which gradients are not yet shared. step: optimizer steps done. validated: the step
    of the last validation. unlogged: the mean loss of each step since the last log, on the device.
    """
    config: Config
    processes: Processes
    precision: str
    compiled: bool
    windows: Windows
    held_out: Windows
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    local_gradients: Callable[[], contextlib.AbstractContextManager]
    step: int = 0
    validated: int = 0
    unlogged: list[torch.Tensor] = field(default_factory=list)

    @property
    def step_tokens(self) -> int:
        """Tokens that one optimizer step predicts, over all micro-batches and processes."""
        params = self.config.training_params
        return params.batch_size * params.aggregate * self.windows.length

    @property
    def lr(self) -> float:
        """Learning rate of the last step done."""
        return lr_at(max(0, self.step - 1), self.config.optim_params)


def train(training: Training, last_step: int, log: Callable[[dict], None], save: Callable[[bool], None], stop_asked: Callable[[], bool]) -> bool:
    """Train up to `last_step` optimizer steps in total; False where it was asked to stop before.

    log: takes a metrics entry, its "split" "train" or "valid". save: writes the state, and a backup if given True.
    stop_asked: asked between steps; answers the same in all processes. `log` and `save` are called in all processes.

    A validation and a save come every `save_every` steps and at the end, a backup every `backup_every`.
    Raises UserError where a loss is not finite; nothing is saved from there on.
    """
    params = training.config.training_params
    clock = Clock(training.step * training.step_tokens)
    bar = tqdm(total=last_step, initial=training.step, desc=training.config.name, unit="step", dynamic_ncols=True, mininterval=0.5,
               disable=not training.processes.is_main)
    batches = training_batches(training.windows, training.config, training.processes, training.step)
    training.model.train()
    with bar, contextlib.closing(batches):
        if training.step and training.step % params.save_every == 0 and training.validated != training.step:
            validate(training, log, stop_asked)  # the run was stopped between this step and its validation
        while training.step < last_step and not stop_asked():
            training.unlogged.append(train_step(training, batches))
            training.step += 1
            bar.update()

            log_due = training.step % params.step_log == 0
            if log_due:
                loss = finite_mean(training)
                training.unlogged.clear()
                rate = clock.rate(training.step * training.step_tokens)
                log({"step": training.step, "split": "train", "loss": loss, "lr": training.lr,
                     "tokens": training.step * training.step_tokens, "tokens_per_s": round(rate)})
                bar.set_postfix_str(f"loss {loss:.4f}, lr {training.lr:.2e}, {rate:,.0f} tokens/s", refresh=False)
            elif training.processes.device.type == "cpu":  # there it is at hand; a GPU would have to be waited for
                bar.set_postfix_str(f"loss {training.unlogged[-1]:.4f}, lr {training.lr:.2e}, {clock.last_rate:,.0f} tokens/s", refresh=False)

            backup_due = training.step % params.backup_every == 0
            if training.step % params.save_every == 0 or backup_due or training.step == last_step:
                with clock.paused():
                    finite_mean(training)
                    validate(training, log, stop_asked)
                    save(backup_due)
        finished = training.step >= last_step
        if not finished and training.step:
            finite_mean(training)
            save(False)
    return finished


def train_step(training: Training, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """One optimizer step on the next `aggregate` micro-batches, piece by piece; this process's part of its loss, on the device.

    Pieces may have unequal numbers of windows: each loss is weighted by its share, so that their sum, and its mean over processes, is the batch's.
    """
    params, optim = training.config.training_params, training.config.optim_params
    for group in training.optimizer.param_groups:
        group["lr"] = lr_at(training.step, optim)
    torch.manual_seed(random_seed(params.seed, training.step, training.processes.rank))

    mean_loss = torch.zeros((), device=training.processes.device)
    pieces = params.aggregate * pieces_of_a_batch(training.config, training.processes)
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
    nn.utils.clip_grad_norm_(training.model.parameters(), optim.grad_clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return mean_loss


def validate(training: Training, log: Callable[[dict], None], stop_asked: Callable[[], bool]) -> None:
    """Log the held-out loss; given up, to be made up for later, where the run is asked to stop meanwhile.

    Raises UserError where it is not finite.
    """
    processes = training.processes
    start = time.perf_counter()
    # Each process its share of every batch: all take equally many, as sharded models need.
    indices_SB = np.arange(len(training.held_out)).reshape(-1, training.config.valid_batch_size)
    mine_BS = processes.share_of(indices_SB.T)
    try:
        losses_WT = held_out_losses(training.model, training.held_out, len(mine_BS), processes.device, training.precision,
                                    indices=mine_BS.T.ravel(), progress=processes.is_main, interrupted=stop_asked)
    except Interrupted:
        return
    totals = processes.total(torch.tensor([losses_WT.sum(dtype=np.float64), losses_WT.size], dtype=torch.float64))
    loss, tokens = (totals[0] / totals[1]).item(), int(totals[1])
    if not np.isfinite(loss):
        raise UserError(f"the held-out loss is {loss} at step {training.step}")
    training.validated = training.step
    log({"step": training.step, "split": "valid", "loss": loss, "lr": training.lr,
         "tokens": training.step * training.step_tokens, "tokens_per_s": round(tokens / (time.perf_counter() - start))})


def finite_mean(training: Training) -> float:
    """The mean training loss since the last log, over all processes, which all know it of each step from then on.

    Raises UserError where a step's is not finite.
    """
    if not training.unlogged:
        return float("nan")
    losses = training.processes.total(torch.stack(training.unlogged).double().cpu()) / training.processes.count
    training.unlogged = list(losses.float().to(training.processes.device))
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = training.step - len(losses) + int(bad[0])
        raise UserError(f"the training loss is {losses[bad[0]].item()} at step {step + 1} (learning rate "
                        f"{lr_at(step, training.config.optim_params):.3g}); a smaller lr, a longer warm-up or precision \"fp32\" may help")
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
