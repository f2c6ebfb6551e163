"""A run from its config to its last state: builds what trains, from the state that is there, and trains it."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.config import Config
from modules.data.token_file import TokenFile, open_tokens
from modules.data.windows import Windows, split
from modules.kernels.precision import has_tf32
from modules.models import LanguageModel, build_model
from modules.models.evaluate import autocast_for
from modules.system import console
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training import checkpoint
from modules.training.batches import pieces_of_a_batch, training_batches
from modules.training.devices import compiles, in_words, keep_freed_memory, pick_compile, pick_precision
from modules.training.graph import StepGraph, pick_graph
from modules.training.history import Stage, continued
from modules.training.initial import Initial, initial_of
from modules.training.interruption import only_run, stopping_on_signals
from modules.training.loop import Training, compute_step
from modules.training.memory import check_memory
from modules.training.parallel import Processes, shared_loss
from modules.training.recording import checkpoint_owed, draw_loss, picture_is_behind, record
from modules.training.resume import (
    Files,
    check_same_run,
    check_same_settings,
    cooldown_asked,
    files_of,
    find_state,
    full_rate,
    keep_before_cooldown,
    make_up,
    stages_of,
    wanted_precision,
    with_cooldown,
)
from modules.training.sharded import put_in_order, restore_sharded, sharded_path

PROJECT_FOLDER = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Request:
    """What a user asks of a run beside its config.

    tokenizer_path: of the tokenizer for snippets. more_steps: train `steps_to_train` more, not up to that many
    in total. cooldown: let the learning rate fall to zero over this many steps from now, and end; 0 for as many as make
    the config's `cooldown_finish` of all steps. accept_changes: go on
    although the config's schedule, optimizer or precision are not those of the state.
    """

    project: str
    tokenizer_path: str | None = None
    more_steps: bool = False
    cooldown: int | None = None
    accept_changes: bool = False


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    token_file: TokenFile
    windows: Windows
    held_out: Windows
    tokenizer: Tokenizer | None


def run(config: Config, request: Request, processes: Processes) -> int:
    """Train the run of `config` from its state, or from the start where it has none. The exit status: 0, or 128 + the
    signal that stopped it.

    `config.model` must be set. Raises UserError for whatever the user can mend; the state is then the last good one.
    """
    files = files_of(config, request.project)
    with only_run(files.state, processes), stopping_on_signals(processes) as stop:
        data = data_of(config, request.tokenizer_path, processes)
        if processes.is_main:
            put_in_order(sharded_path(files.state))
        processes.wait_for_all()
        found = find_state(files)
        step = found["step"] if found else 0
        cooldown = cooldown_asked(request.cooldown, found, config)
        if not cooldown:
            config = config.cooled(last_step_of(config, len(data.windows), step, request.more_steps))
        initial = initial_of(config, found)
        if initial is not None and processes.is_main:
            initial.warn_of_other_tokens(data.token_file)
        if found is not None:
            check_same_run(found, config, data.token_file, files, initial.facts if initial else None)
        config = with_cooldown(config, cooldown, found, files)
        last_step = last_step_of(config, len(data.windows), step, request.more_steps)
        if found is not None:
            tf32 = None if step >= last_step else has_tf32(processes.device)
            check_same_settings(found, config, tf32, request.accept_changes, files)
        done = (
            found is not None and step >= last_step and not checkpoint_owed(step, found["validated"], last_step, config)
        )
        if found is not None and processes.is_main:
            if cooldown and config.optim_params.cooldown and not done:
                keep_before_cooldown(found, config.optim_params.cooldown[0], files)
            make_up(found, config, done, files)
        processes.wait_for_all()
        if done:
            if processes.is_main and picture_is_behind(files):
                draw_loss(config, files)
            tell(processes, f"{config.name}: nothing to do, {what_is_done(config, step, last_step, files)}")
            return 0
        try:
            training = prepare(config, data, processes, stages_of(found) if found else (), step, initial)
            if found is not None:
                restore(training, found, files.state)
            tell(processes, introduction(training, last_step))
            finished = record(training, last_step, files, request.project, data.tokenizer, stop)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{processes.device} is out of memory ({console.reason(error)}); a smaller batch_size with a larger "
                "aggregate, or checkpoint_activations, needs less"
            ) from None
        saved = sharded_path(files.state) if config.training_params.parallel == "fsdp" else files.state
        kept = f"saved in {saved}; the same command goes on from there" if saved.exists() else "nothing to save yet"
        tell(
            processes,
            f"{config.name}: finished at step {training.step:,}, state in {files.state}"
            if finished
            else f"{config.name}: stopped by {stop.reason} at step {training.step:,}, {kept}",
        )
        return 0 if finished else stop.exit_status


def data_of(config: Config, tokenizer_path: str | None, processes: Processes) -> Data:
    """The data of a run, looked at. Raises UserError where config, data, tokenizer and number of processes do not
    fit."""
    params, model_params = config.training_params, config.model_params
    for key, windows in (("batch_size", params.batch_size), ("held-out windows", config.held_out_windows)):
        if windows < processes.count:
            raise UserError(
                f"{config.name}: {key}: expected at least the number of processes, {processes.count}, found {windows}"
            )
    token_file = open_tokens(config.dataset_path)
    token_file.check_ids(model_params.vocab_size)
    tokenizer = matching_tokenizer(tokenizer_path, token_file, model_params.vocab_size) if tokenizer_path else None
    windows, held_out = split(token_file, config.cut, config.reading, params.seed)
    return Data(token_file, windows, held_out, tokenizer)


def prepare(
    config: Config,
    data: Data,
    processes: Processes,
    stages: Sequence[Stage] = (),
    step: int = 0,
    initial: Initial | None = None,
) -> Training:
    """Build all that trains, with the weights of `initial` or new ones, for a run that is at `step` after these stages.
    Raises UserError where config and hardware do not fit."""
    params, device = config.training_params, processes.device
    precision = wanted_precision(config, stages[-1]) if stages else pick_precision(config, device)
    keep_freed_memory(device)
    check_memory(config, processes)
    pieces = pieces_of_a_batch(config, processes)
    model = new_model(config, device, initial)
    graphed = pick_graph(config, processes, model.compile_pays)
    compiled = pick_compile(params.compile, device, model.compile_pays and not graphed)
    if compiled:
        with contextlib.closing(training_batches(data.windows, config, processes, 0, pieces)) as batches:
            compiled = compiles(model, *next(batches), autocast_for(device, precision))
        if not compiled:
            model = new_model(config, device, initial)
    loss_of, local_gradients = shared_loss(model, params.parallel, precision, processes)
    optim = config.optim_params
    training = Training(
        config=config,
        processes=processes,
        stages=continued(stages, step, config, precision, has_tf32(device)),
        compiled=compiled,
        windows=data.windows,
        held_out=data.held_out,
        pieces=pieces,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True),
        loss_of=loss_of,
        local_gradients=local_gradients,
        step=step,
        initial_weights=initial.facts.model_dump() if initial else None,
    )
    if graphed:
        training.graph = StepGraph(functools.partial(compute_step, training), training.optimizer)
    return training


def new_model(config: Config, device: torch.device, initial: Initial | None = None) -> LanguageModel:
    """The model of this config as it begins. UserError where it cannot be trained as the config says."""
    params = config.training_params
    model = build_model(config.trained_model, params.seed, **config.model_arguments)
    if initial is not None:
        initial.put_into(model)
    if params.checkpoint_activations and not model.parts():
        raise UserError(
            f"{config.name}: training_params.checkpoint_activations: expected false for a {config.model}, "
            "which has no blocks to recompute"
        )
    model.checkpoint_activations = params.checkpoint_activations
    return model.to(device)


def restore(training: Training, found: dict, source: Path) -> None:
    """Put the state `found`, read from `source`, into what was built. Raises UserError where it does not fit."""
    if "folder" in found:
        restore_sharded(training.model, training.optimizer, found["folder"])
    else:
        checkpoint.restore(training.model, training.optimizer, found, str(source))
    training.validated, training.early_stages_unknown = found["validated"], found["early_stages_unknown"]
    training.unlogged = list(found["unlogged"].to(training.processes.device))


def matching_tokenizer(path: str, token_file: TokenFile, vocab_size: int) -> Tokenizer:
    """The tokenizer at `path`, as given or relative to the project's folder. UserError where it is not the one that
    made the data."""
    tokenizer = get_tokenizer(path if Path(path).exists() else PROJECT_FOLDER / path)
    token_file.check_tokenizer(tokenizer)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: not the tokenizer of {token_file.path}: it has {tokenizer.vocab_size:,} ids, and the config's "
            f"vocab_size is {vocab_size:,}; give the one that tokenized it, or leave -t out"
        )
    return tokenizer


def last_step_of(config: Config, n_windows: int, step: int = 0, more_steps: bool = False) -> int:
    """The optimizer step at which a run that is at `step` ends: its cool-down's, `steps_to_train`, or one epoch of its
    `n_windows`."""
    if config.optim_params.cooldown is not None:
        return sum(config.optim_params.cooldown)
    return (config.training_params.steps_to_train or n_windows // config.step_windows) + (step if more_steps else 0)


def what_is_done(config: Config, step: int, last_step: int, files: Files) -> str:
    """Why a run has nothing to do, and what would give it something."""
    if config.optim_params.cooldown is None:
        return f"step {step:,} of {last_step:,} is done (-s trains that many more)"
    return (
        f"it is cooled down, its learning rate having fallen to zero at step {last_step:,}; "
        f"to go on at the full rate, {full_rate(files, config.optim_params.cooldown[0])}"
    )


def introduction(training: Training, last_step: int) -> str:
    """One line on what is about to be trained, and how."""
    config, processes = training.config, training.processes
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    how = ", compiled" * training.compiled + ", as a CUDA graph" * (training.graph is not None)
    many = f" x {processes.count} ({config.training_params.parallel})" if processes.count > 1 else ""
    return (
        f"{config.name}: {config.model} of {parameters / 1e6:.1f} M parameters reading {config.order}, steps "
        f"{training.step:,} to {last_step:,} of {training.step_tokens:,} tokens, {training.precision}{how}, "
        f"on {in_words(processes.device)}{many}"
    )


def tell(processes: Processes, line: str) -> None:
    """Say something to the user once."""
    if processes.is_main:
        console.tell(line)
