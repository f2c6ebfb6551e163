"""A run from its config to its last state: builds what trains, resumes it, writes its files.

    <state_save_loc>/<project>/state/<run>.state      what training resumes from
                               state/backups/         backups, with the step in their names
                               metrics/<run>.jsonl    every logged number
                               metrics/<run>.png      the loss curve so far
"""
import contextlib
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from modules import checkpoint, figures
from modules.config import Config
from modules.dataset import TokenFile, open_tokens, split
from modules.devices import allow_tf32, compile_model, pick_compile, pick_precision
from modules.errors import UserError
from modules.evaluate import autocast_for
from modules.files import replacing
from modules.interruption import Stop, only_run, stopping_on_signals
from modules.metrics import Metrics, read_metrics
from modules.models import build_model
from modules.parallel import Processes, shared_loss
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.trainer import Training, train

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
SNIPPET_TOKENS = 60


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


@dataclass(frozen=True)
class Files:
    """Where a run's files are."""
    folder: Path
    run_name: str

    @property
    def state(self) -> Path:
        return self.folder / "state" / f"{self.run_name}.state"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics" / f"{self.run_name}.jsonl"


def files_of(config: Config, project: str) -> Files:
    """The files of the run of this config."""
    return Files(Path(config.training_params.state_save_loc) / project, config.name)


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


# ---- what trains ----

def prepare(config: Config, tokenizer_path: str | None, processes: Processes, found: dict | None) -> tuple[Training, Tokenizer | None]:
    """Build all that trains, in the state `found`. Raises UserError where config, data, tokenizer and hardware do not fit."""
    params, model_params = config.training_params, config.model_params
    for key, windows in (("batch_size", params.batch_size), ("valid_batch_size", config.valid_batch_size)):
        if windows % processes.count:
            raise UserError(f"{config.name}: training_params.{key}: expected a multiple of the number of processes, {processes.count}, found {windows}")
    token_file = open_tokens(params.dataset_folder)
    token_file.check_ids(model_params.vocab_size)
    tokenizer = matching_tokenizer(tokenizer_path, token_file, model_params.vocab_size) if tokenizer_path else None
    windows, held_out = split(token_file, model_params.context, config.stride, params.valid_steps * config.valid_batch_size,
                              params.batch_size * params.aggregate, params.backwards)

    precision = found["precision"] if found and params.precision == "auto" else \
        pick_precision(params.precision, processes.device, model_params.embed_dim)
    allow_tf32(processes.device)
    model = build_model(config.model, params.seed, **model_params.model_dump()).to(processes.device)
    if params.checkpoint_activations:
        if config.model != "gpt":
            raise UserError(f"{config.name}: training_params.checkpoint_activations: expected false for a {config.model}, which has no blocks to recompute")
        model.checkpoint_activations = True
    compiled = pick_compile(params.compile, processes.device, config.model)
    if compiled:
        inputs_BT, targets_BT = (tensor.to(processes.device) for tensor in windows.batch(range(params.batch_size // processes.count)))
        compiled = compile_model(model, inputs_BT, targets_BT, autocast_for(processes.device, precision))
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
    return (f"{config.name}: {config.model} of {parameters / 1e6:.1f} M parameters reading {direction(config)}, steps {training.step:,} to {last_step:,} of "
            f"{training.step_tokens:,} tokens, {training.precision}{', compiled' if training.compiled else ''}, on {device}{many}")


def direction(config: Config) -> str:
    """"forward" or "backward"."""
    return "backward" if config.training_params.backwards else "forward"


def tell(processes: Processes, line: str) -> None:
    """Say something to the user once, not under the progress bar."""
    if processes.is_main:
        tqdm.write(line)


# ---- the state it goes on from ----

def find_state(files: Files) -> dict | None:
    """The newest state of a run, plain or sharded (then with "folder" in place of its tensors); None where there is none.

    Raises UserError where it is damaged, naming the backup to go on from.
    """
    found = None
    if files.state.exists():
        try:
            found = checkpoint.load_state(files.state)
        except UserError as error:
            raise UserError(f"{error}; {way_out(files.state)}") from None
    folder = checkpoint.whole_sharded(files.state)
    if folder is not None:
        facts = checkpoint.sharded_facts(folder)
        if found is None or facts["step"] > found["step"]:
            found = facts | {"folder": folder}
    return found


def way_out(state: Path) -> str:
    """What to do about a damaged state: the newest backup that is whole."""
    for backup in checkpoint.backups_of(state):
        with contextlib.suppress(UserError):
            step = checkpoint.load_state(backup)["step"]
            return f"the newest whole backup is of step {step:,}: to go on from it, replace the state by a copy of {backup}"
    return "there is no whole backup; to start anew, move the state away"


def check_same_run(found: dict, config: Config, files: Files) -> None:
    """Refuse a state that the run of `config` cannot have left: another model, direction, seed, or order of windows."""
    before, now = found["config"], config.to_dict()

    def step_windows(config: dict) -> int:
        return config["training_params"]["batch_size"] * config["training_params"]["aggregate"]

    compared = [(f"model_params.{key}", before["model_params"].get(key), now["model_params"].get(key))
                for key in sorted(before["model_params"].keys() | now["model_params"].keys())]
    compared += [(f"training_params.{key}", before["training_params"][key], now["training_params"][key]) for key in ("backwards", "seed", "stride")]
    compared += [("model", before["model"], now["model"]),
                 ("training_params.batch_size x aggregate", step_windows(before), step_windows(now)),
                 ("the data's fingerprint", found["dataset"]["fingerprint"], open_tokens(config.training_params.dataset_folder).fingerprint)]
    different = [f"{name} {was} there and {wanted} in the config" for name, was, wanted in compared if was != wanted]
    if different:
        raise UserError(f"{files.state}: a state of another run: {'; '.join(different)}; train under another name (--run_name), or move the state away")


def cooled_down(config: Config, steps: int, found: dict | None, files: Files, processes: Processes) -> Config:
    """`config` with a cool-down of `steps` from the state's step on, or from where an interrupted one of as many began.

    What was trained before is kept as a backup: a cooled run cannot go on.
    """
    began = found and found["config"]["optim_params"]
    if began and began["cooldown_steps"] == steps:
        return config.with_optim(cooldown_start=began["cooldown_start"], cooldown_steps=steps)
    if found and processes.is_main and files.state.exists():
        with replacing(checkpoint.backup_path(files.state, found["step"])) as temporary:
            shutil.copyfile(files.state, temporary)
    return config.with_optim(cooldown_start=found["step"] if found else 0, cooldown_steps=steps)


# ---- what it leaves ----

def record(training: Training, last_step: int, files: Files, project: str, tokenizer: Tokenizer | None, stop: Stop) -> bool:
    """Train up to `last_step`, writing metrics, the picture of the loss, states and backups; False where it was stopped before."""
    config, processes = training.config, training.processes
    sharded = config.training_params.parallel == "fsdp"
    writer = checkpoint.StateWriter()
    metrics = Metrics(files.metrics, training.step, project, config.name, files.folder, config.to_dict()) if processes.is_main else None

    def log(entry: dict) -> None:
        writer.check()
        text = snippet(training, tokenizer) if tokenizer and entry["split"] == "valid" and (sharded or processes.is_main) else None
        if processes.is_main:
            metrics.log(entry, text)
            if entry["split"] == "valid":
                figures.save(figures.run_curve(config.name, read_metrics(files.metrics)), files.metrics.with_suffix(""))
                tqdm.write(f"step {entry['step']:,}: held-out loss {entry['loss']:.4f} nats/token" + (f"\n  {text!r}" if text else ""))

    def save(backup: bool) -> None:
        paths = [files.state] + ([checkpoint.backup_path(files.state, training.step)] if backup else [])
        if sharded:
            folder = checkpoint.sharded_path(files.state)
            checkpoint.save_sharded(facts(training), training.model, training.optimizer, folder, processes)
            if processes.is_main and (backup or training.step == last_step):
                for path in paths:
                    checkpoint.export_sharded(folder, path)
        elif processes.is_main:
            writer.write(facts(training) | checkpoint.snapshot(training.model, training.optimizer), *paths)

    try:
        finished = train(training, last_step, log, save, stop.asked)
        writer.wait()
        return finished
    except UserError as error:
        with contextlib.suppress(UserError):
            writer.wait()  # what is being written is good, and stays
        raise UserError(f"{error}; {'the last good state, ' + str(files.state) + ', stays' if files.state.exists() else 'no state was saved'}") from None
    finally:
        if metrics:
            metrics.close()


def facts(training: Training) -> dict:
    """All of a state but its model and optimizer; see checkpoint.py."""
    token_file = training.windows.token_file
    return {
        "step": training.step,
        "tokens": training.step * training.step_tokens,
        "run": training.config.name,
        "config": training.config.to_dict(),
        "precision": training.precision,
        "validated": training.validated,
        "unlogged": torch.stack(training.unlogged).cpu() if training.unlogged else torch.zeros(0),
        "dataset": {"fingerprint": token_file.fingerprint, "n_tokens": len(token_file.tokens), "text_bytes": token_file.text_bytes,
                    "vocab_size": token_file.vocab_size, "tokenizer_fingerprint": token_file.tokenizer_fingerprint},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "saved_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def snippet(training: Training, tokenizer: Tokenizer) -> str:
    """A text that the model makes up from BOS alone, in reading order whichever way it was made. The same draws at every validation."""
    device = training.processes.device
    bos = torch.full((1, 1), training.windows.token_file.bos_id, device=device)
    generator = torch.Generator(device).manual_seed(training.config.training_params.seed)
    with autocast_for(device, training.precision)():
        tokens_BT = training.model.generate(bos, SNIPPET_TOKENS, top_k=50, generator=generator)[:, 1:]
    return tokenizer.detokenize(tokens_BT.flip(1) if training.config.training_params.backwards else tokens_BT)
