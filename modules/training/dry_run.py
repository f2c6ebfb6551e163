"""What a run would be, before it costs anything: sizes, memory, steps in an epoch, and time from a few real steps."""

import contextlib
import time
from datetime import timedelta

import torch

from modules.config import Config
from modules.data.windows import fold_of, folds_in
from modules.system.processes import peak_resident_bytes
from modules.training.initial import initial_of
from modules.training.loop import Training, batches_of, train_step
from modules.training.memory import GIB, STATE_BYTES
from modules.training.parallel import Processes
from modules.training.run import data_of, introduction, last_step_of, prepare, tell
from modules.training.schedule import lr_at

# As a CUDA graph the first three steps are slow, and the fourth too, which records it: the median is of those after.
WARM_UP_STEPS, TIMED_STEPS = 2, 5
STEPS_OF_A_TRIAL = WARM_UP_STEPS + TIMED_STEPS


def dry_run(config: Config, processes: Processes) -> None:
    """Print the facts of a run. Nothing is written. Raises UserError like the run itself."""
    data = data_of(config, None, processes)
    config = config.cooled(last_step_of(config, len(data.windows)))
    training = prepare(config, data, processes, initial=initial_of(config))
    last_step = last_step_of(config, len(data.windows))
    params, step_windows = config.training_params, config.step_windows
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    shards = processes.count if params.parallel == "fsdp" else 1
    static = STATE_BYTES * parameters / shards
    seconds = seconds_a_step(training)
    lines = {
        "parameters": f"{parameters:,}",
        "data": f"{len(training.windows.token_file.tokens):,} tokens: {len(training.windows):,} training windows of "
        f"{training.windows.length}, stride {training.windows.stride}, and {len(training.held_out):,} held-out windows"
        + fold_in_words(training),
        "one step": f"{step_windows:,} windows, {training.step_tokens:,} tokens ({params.aggregate} micro-batch(es) of "
        f"{params.batch_size}{f', each in {training.pieces} pieces' if training.pieces > 1 else ''})",
        "one epoch": f"{len(training.windows) // step_windows:,} steps; this run: {last_step:,} steps, "
        f"{last_step * training.step_tokens:,} tokens",
        "learning rate": f"{lr_at(0, config.optim_params):.3g} at the first step, "
        f"{lr_at(last_step - 1, config.optim_params):.3g} at the last",
        "memory a device": f"{measured_memory(processes)}, {static / GIB:.2f} GiB of it for weights, gradients and "
        "optimizer",
        "speed": f"{training.step_tokens / seconds:,.0f} tokens/s, {seconds:.3g} s a step (median of {TIMED_STEPS})",
        "expected time": f"{duration(seconds * last_step)} without validations",
    }
    tell(processes, introduction(training, last_step))
    for name, value in lines.items():
        tell(processes, f"  {name + ':':<17}{value}")


def fold_in_words(training: Training) -> str:
    """Which fold is held out, where the seed decides."""
    if not training.config.folds_by_seed:
        return ""
    n_tokens, held_out_tokens = len(training.windows.token_file.tokens), training.config.cut.held_out_tokens
    fold = fold_of(training.config.training_params.seed, n_tokens, held_out_tokens)
    return f", fold {fold + 1} of {folds_in(n_tokens, held_out_tokens)} from the end"


def seconds_a_step(training: Training) -> float:
    """The median time of a few real steps, after some that set up."""
    seconds = []
    with contextlib.closing(batches_of(training)) as batches:
        training.model.train()
        for _ in range(STEPS_OF_A_TRIAL):
            start = time.perf_counter()
            train_step(training, batches).item()  # .item() waits for a GPU
            seconds.append(time.perf_counter() - start)
    return sorted(seconds[WARM_UP_STEPS:])[TIMED_STEPS // 2]


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds; years where there are many, which `timedelta` may not even hold."""
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else f"{seconds / (365.25 * 86_400):,.0f} years"


def measured_memory(processes: Processes) -> str:
    """What the steps just taken really needed, in words."""
    peak = peak_bytes(processes)
    if peak is None:
        return "not measured on Windows"
    return f"{peak / GIB:.2f} GiB measured" + (", with Python and torch" if processes.device.type != "cuda" else "")


def peak_bytes(processes: Processes) -> float | None:
    """The most that this process held of its GPU's memory, or of the machine's; None on Windows."""
    if processes.device.type == "cuda":
        return torch.cuda.max_memory_reserved(processes.device)
    return peak_resident_bytes()
