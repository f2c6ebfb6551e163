"""The training state on disk: from it a run goes on, to the bit, as if it had never stopped.

A `.state` is a dictionary of tensors and plain values that `torch.load(weights_only=True)` reads:

    model        state_dict of the model, by parameter name
    optimizer    AdamW's moments and settings, by parameter name
    step         optimizer steps done
    config       the whole config (seed and direction among it), model, run: what was trained
    stages       what each step was trained with (history.py), and held_out_tokens: what was never trained on
    ...          the rest is in `Facts`, which says what a state must hold

Position in the data, learning rate and every random number are functions of (seed, step,
process), so the step is all that has to be kept of them.

A state is copied to memory first and written by a thread while training goes on; it
appears under its name whole (written beside, flushed, renamed) or not at all. Every
byte is covered by the CRC-32 of the zip file that torch writes, and is checked
before it is trusted. The states of sharded models are folders: see sharded.py.
"""

import errno
import os
import re
import threading
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from modules.config import parse_config
from modules.exchange.authors import as_ours, is_authors
from modules.system.errors import UserError, describe_os_error
from modules.system.files import replacing
from modules.system.names import check_name
from modules.system.schema import Schema, checked
from modules.training.history import Stage, as_data

MOST_STEPS = 10**15


class DamagedState(UserError):
    """A state whose bytes are not those that were written."""


class Dataset(Schema):
    """What a state says of the data that it was trained on."""

    fingerprint: str
    n_tokens: int = Field(ge=0)
    text_bytes: int | None = Field(None, ge=0)
    vocab_size: int | None = Field(None, ge=1)
    tokenizer_fingerprint: str | None = None


class InitialWeights(Schema):
    """With which weights a run began that were not drawn by its seed.

    path: where they were. fingerprint: of the weights. family: of a state chosen by the run's own order (`{order}` in
    init_from), what it shares with the states of other orders (initial.py); two runs that began with such states may be
    compared.
    """

    path: str
    fingerprint: str
    family: str | None = None


class Facts(Schema):
    """All of a state but its model and optimizer.

    tokens: predicted in training so far. validated: the step of the last validation. unlogged: the mean loss of each
    step since the last log. early_stages_unknown: a state of an earlier version, which kept no history: its one stage
    is what its config said last. initial_weights: None where the seed drew them. notes: what a report must tell of a
    state that others made.
    """

    step: int = Field(ge=0, le=MOST_STEPS)
    tokens: int = Field(ge=0)
    run: str = Field(min_length=1)
    config: dict
    precision: Literal["fp32", "bf16"]
    validated: int = Field(ge=0)
    unlogged: torch.Tensor
    held_out_tokens: int = Field(ge=1)
    stages: list[Stage] = Field(min_length=1)
    early_stages_unknown: bool
    dataset: Dataset
    versions: dict[str, str]
    initial_weights: InitialWeights | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def in_order(self) -> Self:
        firsts = [stage.first_step for stage in self.stages]
        if firsts[0] != 0 or any(later <= earlier for earlier, later in pairwise(firsts)):
            raise ValueError(f"stages: expected first steps that rise from 0, found {firsts}")
        if self.unlogged.ndim != 1 or not self.unlogged.is_floating_point():
            raise ValueError(
                f"unlogged: expected a list of losses, found {self.unlogged.dtype} {list(self.unlogged.shape)}"
            )
        return self


class State(Facts):
    """A plain state. One without an optimizer can be evaluated, and not be gone on with."""

    model: dict[str, torch.Tensor] = Field(min_length=1)
    optimizer: dict | None = None


def with_what_earlier_versions_left_out(state: dict) -> dict:
    """A state whose keys are those of today. Raises UserError where its config is none."""
    if "stages" in state or not {"config", "step", "precision"} <= state.keys():
        return state
    config = parse_config(state["config"], str(state.get("run")))
    windows = config.training_params.valid_steps * config.valid_batch_size  # how it was counted then
    stages = as_data([Stage(first_step=0, optim_params=config.optim_params, precision=state["precision"])])
    return {
        "held_out_tokens": windows * config.model_params.context,
        "stages": stages,
        "early_stages_unknown": True,
        **state,
    }


def check_facts(facts: object, source: str, kind: type[Facts] = Facts) -> dict:
    """`facts`, as read from `source`, in today's form. UserError, one line, where an entry is missing or is not what it
    should be."""
    if not isinstance(facts, dict) or not {"step", "config"} <= facts.keys():
        raise UserError(
            f"{source}: a torch file, but not a state of this project (expected the keys model, step, config)"
        )
    if "run" in facts:
        check_name(facts["run"], f"{source}: its run")
    facts = with_what_earlier_versions_left_out(facts)
    checked(kind, facts, f"{source}: not a state of this project")
    parse_config(facts["config"], facts["run"], source=source)
    return facts


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """A copy in CPU memory of the weights and the optimizer, {"model", "optimizer"}, by parameter name.

    The copy is complete on return: training may go on while it is written.
    """
    weights, moments = get_state_dict(model, optimizer)
    return {"model": _copied(weights), "optimizer": _copied(moments)}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, source: str) -> None:
    """Put the weights and optimizer of the state read from `source` into `model` and `optimizer`, sharded ones too.

    Raises UserError where a tensor is missing, too much, of another shape or no number: nothing is restored then.
    """
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    check_tensors(state["model"], shapes, f"{source}: model")
    moments = (state.get("optimizer") or {}).get("state")
    if not isinstance(moments, dict):
        raise UserError(
            f"{source}: has no optimizer: it can be evaluated, but not be trained on; start anew under another name "
            "(--run_name)"
        )
    for moment in ("exp_avg", "exp_avg_sq"):
        of_each = {name: entry.get(moment) if isinstance(entry, dict) else entry for name, entry in moments.items()}
        check_tensors(of_each, shapes, f"{source}: optimizer {moment}")
    check_tensors(
        {name: entry.get("step") for name, entry in moments.items()},
        dict.fromkeys(shapes, torch.Size([])),
        f"{source}: optimizer step",
    )
    # The optimizer's settings are the config's and this program's, not what a file says.
    settings = get_state_dict(model, optimizer)[1]["param_groups"]
    moments = {name: {key: entry[key] for key in ("step", "exp_avg", "exp_avg_sq")} for name, entry in moments.items()}
    optimizer_state: Any = {"state": moments, "param_groups": settings}
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=optimizer_state,
        options=StateDictOptions(full_state_dict=True),
    )


def check_tensors(tensors: dict, shapes: dict[str, torch.Size], source: str) -> None:
    """Raises UserError unless `tensors` are just those of `shapes`, of finite numbers."""
    for name in sorted(shapes.keys() | tensors.keys()):
        tensor, shape = tensors.get(name), shapes.get(name)
        if shape is None or not isinstance(tensor, torch.Tensor):
            found = (
                f"{list(tensor.shape)}"
                if isinstance(tensor, torch.Tensor)
                else "nothing"
                if tensor is None
                else type(tensor).__name__
            )
            raise UserError(
                f"{source}: {name}: expected {list(shape) if shape is not None else 'no such tensor'}, found {found}"
            )
        if tensor.shape != shape or not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(
                f"{source}: {name}: expected numbers {list(shape)}, found {tensor.dtype} {list(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{source}: {name}: holds numbers that are not finite")


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value


def save_state(state: dict, path: Path) -> None:
    """Write a state so that `path` is the old one or the whole new one at any instant. UserError where it cannot be
    written."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:  # given a path, torch hides why it failed
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else f"{path}: {str(error).splitlines()[0]}"
        before = "the state saved before is as it was" if path.exists() else "no state was saved yet"
        raise UserError(f"cannot save the state {reason}; {before}. Then run the same command again") from None


def unpacked(file: Path | BinaryIO, mapped: bool = False) -> tuple[Any, str | None]:
    """What a file of torch.save holds, every byte compared with its CRC-32 first, and None; or None and what is wrong
    with its bytes. `mapped`, for paths: tensors are mapped, and their bytes neither read nor compared.

    Raises OSError and MemoryError where it cannot be read for another reason: nothing says then that the file is bad.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if mapped:
                archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))  # compares it too
            flaw = None if mapped else archive.testzip()
        if flaw is not None:
            return None, flaw
        if not isinstance(file, Path):
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped or None), None
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and pickle each have errors of their own for damage
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # zipfile seeks before the start of a file that is cut (EINVAL)
            raise
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            return None, f"it holds {found[1]}, which is read by running code: that is not done"
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


def load_state(path: str | os.PathLike, mapped: bool = False) -> dict:
    """Read a `.state` into CPU memory, every byte and every entry checked. `mapped`: all but its tensors, whose bytes
    are left where they are (of states of many GB, an instant).

    A checkpoint of the authors' code is read as a state without an optimizer (exchange/authors.py).

    Raises DamagedState where it is truncated or damaged, UserError where it is missing, cannot be read or is no state.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such state")
    try:
        state, flaw = unpacked(path, mapped)
    except (OSError, MemoryError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else "not enough memory"
        raise UserError(f"{path}: the state cannot be read: {reason}") from None
    if flaw is not None:
        raise DamagedState(f"{path}: a truncated or damaged state ({flaw})")
    return check_facts(as_ours(state, path) if is_authors(state) else state, str(path), State)


def backups_of(path: Path) -> list[Path]:
    """The backups of the run whose state is `path`, newest first."""
    name = re.compile(re.escape(path.name.removesuffix(".state")) + r"_step([0-9]+)\.state")
    folder = path.parent / "backups"
    steps = {
        int(found[1]) for entry in (os.listdir(folder) if folder.is_dir() else []) if (found := name.fullmatch(entry))
    }
    return [backup for step in sorted(steps, reverse=True) if (backup := backup_path(path, step)).is_file()]


def backup_path(path: Path, step: int) -> Path:
    """Where the backup of step `step` of the state `path` belongs."""
    return path.parent / "backups" / f"{path.name.removesuffix('.state')}_step{step:09d}.state"


class StateWriter:
    """Writes states in a thread, one at a time. An error of the thread is raised by the next call."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def write(self, state: dict, *paths: Path) -> None:
        """Start writing `state`, which must not change any more, to each of `paths`; waits for the write before."""
        self.wait()

        def work():
            try:
                for path in paths:
                    save_state(state, path)
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="state writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that has failed, without waiting for one under way."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when what was given is on the disk. Raises UserError where it could not be written."""
        if self._thread is not None:
            self._thread.join()
        self.check()
