"""The training state on disk: from it a run goes on, to the bit, as if it had never stopped.

A `.state` is a dictionary of tensors and plain values that `torch.load(weights_only=True)` reads:

    model        state_dict of the model, by parameter name
    optimizer    AdamW's moments and settings, by parameter name
    step         optimizer steps done
    config       the whole config (seed and direction among it), model, run: what was trained
    ...          the rest is listed where it is made, in trainer.py

Position in the data, learning rate and every random number are functions of (seed, step,
process), so the step is all that has to be kept of them.

A state is copied to memory first and written by a thread while training goes on; it
appears under its name whole (written beside, flushed, renamed) or not at all. Every
byte is covered by the CRC-32 of the zip file that torch writes, and is checked
before it is trusted. The states of sharded models are folders written by all processes at
once (torch.distributed.checkpoint), and can be turned into a plain `.state`.
"""
import os
import re
import shutil
import threading
import zipfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from modules.errors import UserError, describe_os_error
from modules.files import replacing, sync_folder

FACTS = "facts.pt"  # beside the shards of a sharded state: all of a state but its model and optimizer


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """A copy in CPU memory of the weights and the optimizer, {"model", "optimizer"}, by parameter name.

    The copy is complete on return: training may go on while it is written.
    """
    weights, moments = get_state_dict(model, optimizer)
    return {"model": _copied(weights), "optimizer": _copied(moments)}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Put a state's weights and optimizer into `model` and `optimizer`, sharded ones too."""
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value


def save_state(state: dict, path: Path) -> None:
    """Write a state so that `path` is the old one or the whole new one at any instant. UserError where it cannot be written."""
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:  # given a path, torch hides why it failed
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else f"{path}: {str(error).splitlines()[0]}"
        before = "the state saved before is as it was" if path.exists() else "no state was saved yet"
        raise UserError(f"cannot save the state {reason}; {before}. Then run the same command again") from None


def load_state(path: str | os.PathLike) -> dict:
    """Read a `.state` into CPU memory, every byte checked.

    Raises UserError where it is missing, truncated, damaged or not a state.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such state")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, zlib and pickle each have errors of their own for damage
        damaged = str(error).splitlines()[0] if str(error) else type(error).__name__
    if damaged is not None:
        raise UserError(f"{path}: a truncated or damaged state ({damaged})")
    if not isinstance(state, dict) or not {"model", "step", "config"} <= state.keys():
        raise UserError(f"{path}: a torch file, but not a state of this project (expected the keys model, step, config)")
    return state


def backups_of(path: Path) -> list[Path]:
    """The backups of the run whose state is `path`, newest first."""
    name = re.compile(re.escape(path.name.removesuffix(".state")) + r"_step([0-9]+)\.state")
    folder = path.parent / "backups"
    steps = {int(found[1]) for entry in (os.listdir(folder) if folder.is_dir() else []) if (found := name.fullmatch(entry))}
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


def sharded_path(path: Path) -> Path:
    """The folder of the sharded state that belongs to the plain state `path`."""
    return path.with_suffix(".sharded")


def save_sharded(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, processes) -> None:
    """Write a state whose model is sharded: every process its shards. `state` is all of it but model and optimizer.

    `folder` is replaced when the new one is whole. Call on all processes.
    """
    fresh = folder.with_name(f".{folder.name}.tmp")
    if processes.is_main:
        shutil.rmtree(fresh, ignore_errors=True)
    processes.wait_for_all()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=fresh)
    if processes.is_main:
        save_state(state, fresh / FACTS)
        sync_folder(fresh)
        previous = folder.with_name(f".{folder.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(fresh, folder)
        sync_folder(folder.parent)
        shutil.rmtree(previous, ignore_errors=True)
    processes.wait_for_all()


def whole_sharded(path: Path) -> Path | None:
    """The newest whole sharded state that belongs to `path`: a kill between two renames leaves it under another name."""
    folder = sharded_path(path)
    candidates = [folder, folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.previous")]
    return next((candidate for candidate in candidates if (candidate / FACTS).exists()), None)


def sharded_facts(folder: Path) -> dict:
    """All of a sharded state but its model and optimizer. UserError where it is damaged."""
    facts = folder / FACTS
    try:
        return torch.load(facts, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{folder}: a damaged sharded state ({type(error).__name__} in {facts.name})") from None


def restore_sharded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read a sharded state into `model` and `optimizer`, on any number of processes, sharded or not. Call on all processes."""
    weights, moments = get_state_dict(model, optimizer)
    try:
        dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    except Exception as error:
        raise UserError(f"{folder}: a damaged sharded state ({str(error).splitlines()[0]})") from None
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def export_sharded(folder: Path, path: Path) -> None:
    """Turn a sharded state into a plain `.state`. Needs memory for the whole, and no process group.

    Raises UserError where the folder is not a whole sharded state.
    """
    if not (folder / FACTS).exists():
        raise UserError(f"{folder}: not a whole sharded state (expected a folder with {FACTS})")
    gathered = folder / "gathered.tmp"
    try:
        dcp_to_torch_save(folder, gathered)
        tensors = torch.load(gathered, weights_only=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: a damaged sharded state ({str(error).splitlines()[0]})") from None
    finally:
        gathered.unlink(missing_ok=True)
    save_state(sharded_facts(folder) | tensors, path)
