"""What a run would be, before it costs anything: sizes, memory, steps in an epoch, and time from a few real steps."""

import contextlib
import os
import time
from datetime import timedelta

import torch

from modules.config import Config
from modules.kernels.cross_entropy import chunk_bytes
from modules.training.batches import pieces_of_a_batch, training_batches
from modules.training.loop import Training, train_step
from modules.training.parallel import Processes
from modules.training.run import data_of, introduction, last_step_of, prepare, tell
from modules.training.schedule import lr_at

WARM_UP_STEPS, TIMED_STEPS = 2, 5
GIB = 2**30


def dry_run(config: Config, processes: Processes) -> None:
    """Print the facts of a run. Nothing is written. Raises UserError like the run itself."""
    data = data_of(config, None, processes)
    config = config.cooled(last_step_of(config, len(data.windows)))
    training = prepare(config, data, processes)
    last_step = last_step_of(config, len(data.windows))
    params, step_windows = config.training_params, config.step_windows
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    static, activations = memory_estimate(training)
    pieces = pieces_of_a_batch(config, processes)
    seconds = seconds_a_step(training)
    lines = {
        "parameters": f"{parameters:,}",
        "data": f"{len(training.windows.token_file.tokens):,} tokens: {len(training.windows):,} training windows of {training.windows.length}, stride "
        f"{training.windows.stride}, and {len(training.held_out):,} held-out windows",
        "one step": f"{step_windows:,} windows, {training.step_tokens:,} tokens ({params.aggregate} micro-batch(es) of {params.batch_size}"
        f"{f', each in {pieces} pieces' if pieces > 1 else ''})",
        "one epoch": f"{len(training.windows) // step_windows:,} steps; this run: {last_step:,} steps, {last_step * training.step_tokens:,} tokens",
        "learning rate": f"{lr_at(0, config.optim_params):.3g} at the first step, {lr_at(last_step - 1, config.optim_params):.3g} at the last",
        "memory a device": f"about {(static + activations) / GIB:.2f} GiB: {static / GIB:.2f} for weights, gradients and optimizer, "
        f"{activations / GIB:.2f} for activations; {measured_memory(processes)}",
        "speed": f"{training.step_tokens / seconds:,.0f} tokens/s, {seconds:.3g} s a step (median of {TIMED_STEPS})",
        "expected time": f"{duration(seconds * last_step)} without validations",
    }
    tell(processes, introduction(training, last_step))
    for name, value in lines.items():
        tell(processes, f"  {name + ':':<17}{value}")


def seconds_a_step(training: Training) -> float:
    """The median time of a few real steps, after some that set up."""
    seconds = []
    with contextlib.closing(training_batches(training.windows, training.config, training.processes, 0)) as batches:
        training.model.train()
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            start = time.perf_counter()
            train_step(training, batches).item()  # .item() waits for a GPU
            seconds.append(time.perf_counter() - start)
    return sorted(seconds[WARM_UP_STEPS:])[TIMED_STEPS // 2]


def memory_estimate(training: Training) -> tuple[int, int]:
    """Bytes a device for weights, gradients and moments (16 a parameter), and for the activations of one piece of a
    batch.

    For the backward pass a block keeps, of each token: its input and the sum in its middle (2 D, fp32) and, in the
    dtype of the products, their norms (2 D), its queries, keys, values and their mixture (4 D), and the MLP's wide half
    before and after the GELU. A recomputed block keeps its input, a recurrent layer about 8 D. The loss adds a chunk of
    logits and, on a GPU, its softmax in fp32, or on a CPU a part of its gradient of the same size.
    """
    params, model_params = training.config.training_params, training.config.model_params
    shards = training.processes.count if params.parallel == "fsdp" else 1
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    share = len(training.processes.share_of(range(params.batch_size)))
    tokens = -(-share // pieces_of_a_batch(training.config, training.processes)) * training.windows.length
    width, layers = model_params.embed_dim, model_params.n_layers
    number = 2 if training.precision == "bf16" else 4  # bytes
    if training.config.model != "gpt":
        kept = layers * 8 * width * number
    else:
        block = 2 * width * 4 + (6 * width + 2 * int(model_params.mlp_ratio * width)) * number
        kept = block + layers * width * 4 if params.checkpoint_activations else layers * block
    logits = min(chunk_bytes(training.processes.device), number * tokens * model_params.vocab_size)
    head = 4 * model_params.vocab_size * width  # its gradient, before it is added to the others
    chunks = 3 if training.processes.device.type == "cuda" else 2
    return 16 * parameters // shards, tokens * (kept + 4 * width * number) + chunks * logits + head


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds; years where there are many, which `timedelta` may not even hold."""
    return str(timedelta(seconds=round(seconds))) if seconds < 1e9 else f"{seconds / (365.25 * 86_400):,.0f} years"


def measured_memory(processes: Processes) -> str:
    """What the steps just taken really needed."""
    if processes.device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(processes.device) / GIB:.2f} measured"
    if os.name == "nt":
        return "not measured on Windows"
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kib / 2**20:.2f} measured, Python and torch included"
