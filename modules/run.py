"""A run from its config to its last state: builds what trains, from the state that is there, and trains it."""
import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from modules import checkpoint
from modules.batches import training_batches
from modules.config import Config
from modules.dataset import TokenFile, open_tokens, split
from modules.devices import allow_tf32, compile_model, keep_freed_memory, pick_compile, pick_precision
from modules.errors import UserError
from modules.evaluate import autocast_for
from modules.interruption import only_run, stopping_on_signals
from modules.memory import check_memory
from modules.models import build_model
from modules.parallel import Processes, shared_loss
from modules.recording import record
from modules.resume import check_same_run, cooled_down, files_of, find_state
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.trainer import Training

PROJECT_FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Request:
    """What a user asks of a run beside its config.

    tokenizer_path: of the tokenizer for snippets. more_steps: train `steps_to_train` more, not up to that many
    in total. cooldown: let the learning rate fall to zero over this many steps from now, and end.
    """
    project: str
    tokenizer_path: str | None = None
    more_steps: bool = False
    cooldown: int | None = None


def run(config: Config, request: Request, processes: Processes) -> int:
    """Train the run of `config` from its state, or from the start where it has none. The exit status: 0, or 128 + the signal that stopped it.

    `config.model` must be set. Raises UserError for whatever the user can mend; the state is then the last good one.
    """
    files = files_of(config, request.project)
    with only_run(files.state, processes), stopping_on_signals(processes) as stop:
        found = find_state(files)
        if found is not None:
            check_same_run(found, config, files)
        if request.cooldown:
            config = cooled_down(config, request.cooldown, found, files, processes)
        training, tokenizer = prepare(config, request.tokenizer_path, processes, found)
        last_step = last_step_of(training, request.more_steps)
        if training.step >= last_step:
            tell(processes, f"{config.name}: nothing to do, step {training.step:,} of {last_step:,} is done (-s trains that many more)")
            return 0
        tell(processes, introduction(training, last_step))
        try:
            finished = record(training, last_step, files, request.project, tokenizer, stop)
        except torch.OutOfMemoryError as error:
            raise UserError(f"{processes.device} is out of memory ({str(error).splitlines()[0]}); a smaller batch_size with a larger aggregate, or "
                            "checkpoint_activations, needs less") from None
        kept = f"saved in {files.state}; the same command goes on from there" if training.step else "nothing to save yet"
        tell(processes, f"{config.name}: finished at step {training.step:,}, state in {files.state}" if finished else
             f"{config.name}: stopped by {stop.reason} at step {training.step:,}, {kept}")
        return 0 if finished else stop.exit_status


def prepare(config: Config, tokenizer_path: str | None, processes: Processes, found: dict | None) -> tuple[Training, Tokenizer | None]:
    """Build all that trains, in the state `found`. Raises UserError where config, data, tokenizer and hardware do not fit."""
    params, model_params = config.training_params, config.model_params
    for key, windows in (("batch_size", params.batch_size), ("valid_batch_size", config.valid_batch_size)):
        if windows < processes.count:
            raise UserError(f"{config.name}: training_params.{key}: expected at least the number of processes, {processes.count}, found {windows}")
    token_file = open_tokens(config.dataset_path)
    token_file.check_ids(model_params.vocab_size)
    tokenizer = matching_tokenizer(tokenizer_path, token_file, model_params.vocab_size) if tokenizer_path else None
    windows, held_out = split(token_file, model_params.context, config.stride, params.valid_steps * config.valid_batch_size,
                              params.batch_size * params.aggregate, params.backwards)

    precision = found["precision"] if found and params.precision == "auto" else \
        pick_precision(params.precision, processes.device, model_params.embed_dim)
    allow_tf32(processes.device)
    keep_freed_memory(processes.device)
    check_memory(config, processes)
    model = build_model(config.model, params.seed, **model_params.model_dump()).to(processes.device)
    if params.checkpoint_activations:
        if config.model != "gpt":
            raise UserError(f"{config.name}: training_params.checkpoint_activations: expected false for a {config.model}, which has no blocks to recompute")
        model.checkpoint_activations = True
    compiled = pick_compile(params.compile, processes.device, config.model)
    if compiled:
        with contextlib.closing(training_batches(windows, config, processes, 0)) as batches:
            compiled = compile_model(model, *next(batches), autocast_for(processes.device, precision))
    loss_of, local_gradients = shared_loss(model, params.parallel, precision, processes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim_params.lr, weight_decay=config.optim_params.weight_decay, fused=True)
    training = Training(config, processes, precision, compiled, windows, held_out, model, optimizer, loss_of, local_gradients)
    if found is not None:
        if "folder" in found:
            checkpoint.restore_sharded(model, optimizer, found["folder"])
        else:
            checkpoint.restore(model, optimizer, found)
        training.step, training.validated = found["step"], found["validated"]
        training.unlogged = list(found["unlogged"].to(processes.device))
    return training, tokenizer


def matching_tokenizer(path: str, token_file: TokenFile, vocab_size: int) -> Tokenizer:
    """The tokenizer at `path`, as given or relative to the project's folder. UserError where it is not the one that made the data."""
    tokenizer = get_tokenizer(path if Path(path).exists() else PROJECT_FOLDER / path)
    made_by = token_file.tokenizer_fingerprint
    if tokenizer.vocab_size > vocab_size or made_by not in (None, tokenizer.fingerprint):
        raise UserError(f"{path}: not the tokenizer of {token_file.path}: fingerprint {tokenizer.fingerprint[:12]} with {tokenizer.vocab_size:,} ids, "
                        f"the data has {(made_by or 'none')[:12]} with {token_file.vocab_size or vocab_size:,}; give the one that tokenized it, or leave -t out")
    return tokenizer


def last_step_of(training: Training, more_steps: bool = False) -> int:
    """The optimizer step at which the run ends: its cool-down's, `steps_to_train`, or one epoch."""
    config = training.config
    if config.optim_params.cooldown_start is not None:
        return config.optim_params.cooldown_start + config.optim_params.cooldown_steps
    epoch_steps = len(training.windows) // (config.training_params.batch_size * config.training_params.aggregate)
    return (config.training_params.steps_to_train or epoch_steps) + (training.step if more_steps else 0)


def introduction(training: Training, last_step: int) -> str:
    """One line on what is about to be trained, and how."""
    config, processes = training.config, training.processes
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    many = f" x {processes.count} ({config.training_params.parallel})" if processes.count > 1 else ""
    return (f"{config.name}: {config.model} of {parameters / 1e6:.1f} M parameters reading {config.direction}, steps {training.step:,} to {last_step:,} of "
            f"{training.step_tokens:,} tokens, {training.precision}{', compiled' if training.compiled else ''}, on {device}{many}")


def tell(processes: Processes, line: str) -> None:
    """Say something to the user once, not under the progress bar."""
    if processes.is_main:
        tqdm.write(line)
