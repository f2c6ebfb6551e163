"""The states of sharded models (fsdp): folders that all processes write at once, read on any number of them.

    <run>.sharded/shard00000.safetensors   the first process's rows of every sharded tensor, shard00001 the second's...
                  facts.pt                 the rest of the state, as in checkpoint.py, and under "sharded":
                      files                each shard file's size and CRC-32
                      tensors              by name: sharded ones as shape and dtype (on torch's "meta" device), others
                                           (step counts) whole
                      param_groups         AdamW's settings

A tensor is the rows of all files, one under another in the order of the processes, which is how fully_shard divides it.
Names are those of a plain state with "model." before, or "optimizer." before and ".exp_avg" or the like behind.

Reading runs no code: safetensors hold nothing but numbers, and facts.pt is read with `weights_only`. Nothing is put
into a model before every byte has been checked: the shards by their CRC-32, facts.pt by that of its zip file.

torch.distributed.checkpoint is not used. Its own format unpickles whatever the folder holds. Its safetensors writer
(HuggingFaceStorageWriter, torch 2.13) puts entries that are no tensors before the header, where no reader finds them,
and copies a whole shard in memory; its reader infers a tensor's size from the files that it finds. Neither has
checksums.
"""

import contextlib
import io
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, Shard

from modules.system.errors import UserError, describe_os_error
from modules.system.files import replacing, sync_folder
from modules.system.schema import Schema, checked
from modules.training.checkpoint import save_state, unpacked

FACTS = "facts.pt"
FORMER_FORMAT = ".metadata"  # torch.distributed.checkpoint's index, a pickle
LEFTOVER = re.compile(
    r"(?:[0-9a-f]{16}\.)?(tmp|previous)"
)  # what stands behind ".<folder>." in the name of what a killed save leaves
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
READ_BYTES = 1 << 20
WAY_OUT = (
    "move the folder away: the same command then goes on from the run's plain .state, "
    "or from a copy of a backup in its place"
)


class ShardFile(Schema):
    """What a file of shards must be."""

    bytes: int = Field(ge=0)
    crc32: int = Field(ge=0, lt=1 << 32)


class Settings(Schema):
    """One of AdamW's parameter groups."""

    model_config = ConfigDict(
        extra="allow"
    )  # what else torch keeps there: switches, which are exported and not put into an optimizer
    params: list[str]
    lr: float
    betas: Annotated[tuple[float, float], Field(strict=False)]  # a list too
    eps: float
    weight_decay: float


class Sharded(Schema):
    """What the shards hold. tensors: by name; on the meta device where their values are in the files."""

    files: dict[str, ShardFile]
    tensors: dict[str, torch.Tensor]
    param_groups: list[Settings]

    @model_validator(mode="after")
    def complete(self) -> "Sharded":
        """Each parameter of the optimizer with its moments, in the shape that it has in the model, and no other
        entries."""
        moments = {
            f"optimizer.{name}.{key}": f"model.{name}"
            for group in self.param_groups
            for name in group.params
            for key in MOMENTS
        }
        for name in sorted(moments.keys() | moments.values() | self.tensors.keys()):
            if name not in self.tensors:
                raise ValueError(f"{name} is missing")
            tensor = self.tensors[name]
            if tensor.layout != torch.strided or name not in moments and not name.startswith("model."):
                raise ValueError(f"{name} is not of a model or of AdamW")
            if name in moments and tensor.shape != (
                () if name.endswith(".step") else self.tensors[moments[name]].shape
            ):
                raise ValueError(f"{name} has the shape {list(tensor.shape)}")
        return self

    @property
    def in_files(self) -> dict[str, torch.Tensor]:
        """The tensors whose values are in the files, as shape and dtype."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.is_meta}


class Facts(Schema):
    """All of a sharded state but its shards."""

    step: int = Field(ge=0)
    config: dict
    sharded: Sharded


def sharded_path(path: Path) -> Path:
    """The folder of the sharded state that belongs to the plain state `path`."""
    return path.with_suffix(".sharded")


def whole_sharded(path: Path) -> Path | None:
    """The newest sharded state that belongs to `path`: its folder, or what a kill between two renames left. None where
    there is none."""
    return whole_at(sharded_path(path))


def whole_at(folder: Path) -> Path | None:
    """`folder` if it is there, else the whole one that a killed save left beside it, else None."""
    if os.path.lexists(folder):
        return folder
    whole = {
        kind: leftover
        for leftover, kind in leftovers(folder)
        if not leftover.is_symlink() and (leftover / FACTS).exists()
    }
    return whole.get("tmp") or whole.get("previous")


def leftovers(folder: Path) -> list[tuple[Path, str]]:
    """What killed saves of `folder` left beside it: each path, and whether it is the new state ("tmp") or the one
    before ("previous")."""
    prefix = f".{folder.name}."
    names = os.listdir(folder.parent) if folder.parent.exists() else []
    found = [(name, LEFTOVER.fullmatch(name.removeprefix(prefix))) for name in sorted(names) if name.startswith(prefix)]
    return [(folder.parent / name, match[1]) for name, match in found if match]


def save_sharded(state: dict, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, processes) -> None:
    """Write a state whose model is sharded: every process its shards. `state` is all of it but model and optimizer.

    `folder` is replaced when the new one is whole. Call on all processes. UserError in all of them where one cannot
    write.
    """
    fresh = None
    try:
        with agreeing():
            fresh = new_folder(folder) if processes.is_main else None
        fresh = gathered(fresh)[0]
        with agreeing():
            weights, moments = get_state_dict(model, optimizer)
            tensors = by_name(weights, moments)
            file = write_shard(fresh, processes.rank, tensors)
        files = dict(gathered(file))
        with agreeing():
            if processes.is_main:
                outlines = {name: outline(tensor) for name, tensor in tensors.items()}
                sharded = {"files": files, "tensors": outlines, "param_groups": moments["param_groups"]}
                put_in_place(fresh, folder, state | {"sharded": sharded})
    except (OSError, UserError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        before = "the one saved before is as it was" if whole_at(folder) else "no sharded state was saved yet"
        raise UserError(
            f"cannot save the sharded state {folder}: {reason}; {before}. "
            "Make room if the disk is full, then run the same command again"
        ) from None
    finally:
        if fresh is not None and processes.is_main:
            shutil.rmtree(
                fresh, ignore_errors=True
            )  # of a failed save; after a good one there is no such folder any more


@contextlib.contextmanager
def agreeing() -> Iterator[None]:
    """A block that all processes run and that ends alike in all: where one fails, the others raise a UserError and wait
    for nothing."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    line = (
        None
        if failure is None
        else str(failure)
        if isinstance(failure, UserError)
        else f"{type(failure).__name__}: {failure}"
    )
    lines = [line for line in gathered(line) if line is not None]
    if failure is not None:
        raise failure
    if lines:
        raise UserError(lines[0])


def gathered(value: Any) -> list:
    """`value` of each process, in the order of the processes."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def new_folder(folder: Path) -> Path:
    """A new, empty folder beside `folder`, under a name that nobody can have known; what killed saves left is put in
    order."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    put_in_order(folder)
    fresh = beside(folder, "tmp")
    fresh.mkdir()  # fails where anything has this name, be it a link
    return fresh


def put_in_order(folder: Path) -> None:
    """End a save of `folder` that was killed, and remove what killed saves left. Call where no save is under way."""
    whole = whole_at(folder)
    if whole is not None and whole != folder:
        os.replace(whole, folder)
    remove_leftovers(folder)


def beside(folder: Path, kind: str) -> Path:
    """A name of the pattern of `leftovers`."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.{kind}")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves of `folder` left; of a link the link alone."""
    for leftover, _ in leftovers(folder):
        if leftover.is_symlink() or not leftover.is_dir():
            leftover.unlink(missing_ok=True)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def by_name(weights: dict, moments: dict) -> dict[str, torch.Tensor]:
    """The tensors of a model and an optimizer, as `get_state_dict` gives them, in one dictionary."""
    return {f"model.{name}": tensor for name, tensor in weights.items()} | {
        f"optimizer.{name}.{key}": tensor
        for name, entries in moments["state"].items()
        for key, tensor in entries.items()
    }


def outline(tensor: torch.Tensor) -> torch.Tensor:
    """What facts.pt keeps of a tensor: shape and dtype of a sharded one, a copy of any other."""
    if isinstance(tensor, DTensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return tensor.detach().to("cpu", copy=True)


def write_shard(folder: Path, rank: int, tensors: dict[str, torch.Tensor]) -> tuple[str, dict]:
    """Write this process's rows of what is sharded; the file's name, and its `ShardFile`."""
    path = folder / f"shard{rank:05d}.safetensors"
    rows = {
        name: tensor.to_local().detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if isinstance(tensor, DTensor)
    }
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_file(rows, path)
    except SafetensorError as error:  # also where the disk is full; the text has the system's reason
        raise UserError(f"{path}: {error}") from None
    path.chmod(mode)  # safetensors would let nobody but the owner read it
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return path.name, {"bytes": path.stat().st_size, "crc32": crc32_of(path)}


def put_in_place(fresh: Path, folder: Path, facts: dict) -> None:
    """Complete the new state by `facts`, see that it can be read, and let it take the place of the one before."""
    check_headers(fresh, checked(Facts, facts, str(fresh)).sharded)
    try:
        with replacing(fresh / FACTS) as temporary:
            torch.save(facts, temporary)
    except RuntimeError as error:  # torch's writer wraps a full disk in a RuntimeError
        raise UserError(f"{fresh / FACTS}: {str(error).splitlines()[0]}") from None
    if os.path.lexists(folder):
        os.replace(folder, beside(folder, "previous"))
    os.replace(fresh, folder)
    sync_folder(folder.parent)
    remove_leftovers(folder)


def sharded_facts(folder: Path) -> dict:
    """All of a sharded state but its model and optimizer.

    UserError where facts.pt is damaged, or a file is missing, too many, or of another size.
    """
    facts, _ = read_facts(folder)
    return facts


def restore_sharded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read a sharded state into `model` and `optimizer`, on any number of processes, sharded or not. Call on all
    processes.

    UserError in all of them where one finds damage, or a state of another model; model and optimizer are then as they
    were.
    """
    rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    begun = bool(optimizer.state)
    with agreeing():
        _, sharded = read_facts(folder)
        check_bytes(folder, sharded, list(sharded.files)[rank::count])  # each file in one of the processes
    try:
        with agreeing():
            check_headers(folder, sharded)
            # This gives the optimizer moments where it has none yet.
            weights, moments = get_state_dict(model, optimizer)
            tensors = by_name(weights, moments)
            param_groups: Any = moments["param_groups"]
            check_fit(folder, sharded, tensors, param_groups)
    except Exception:
        if not begun:
            optimizer.state.clear()
        raise
    with agreeing(), torch.no_grad():
        targets = {name: own_rows(tensor) for name, tensor in tensors.items()}
        read_rows(folder, sharded, {name: targets[name] for name in sharded.in_files})
        for name in sharded.tensors.keys() - sharded.in_files.keys():
            rows, first = targets[name]
            saved = sharded.tensors[name]
            rows.copy_(saved[first : first + len(rows)] if rows.dim() else saved)
    # The optimizer's settings stay its own: they are the config's and this program's, not what a file says.
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def export_sharded(folder: Path, path: Path) -> None:
    """Turn a sharded state into a plain `.state`; see `load_sharded`."""
    save_state(load_sharded(folder), path)


def load_sharded(folder: Path) -> dict:
    """A sharded state as a plain one. Needs memory for the whole, once, and no process group.

    Raises UserError where the folder is not a whole sharded state.
    """
    facts, sharded = read_facts(folder)
    param_groups = [group.model_dump() for group in sharded.param_groups]
    check_bytes(folder, sharded, sharded.files)
    check_headers(folder, sharded)
    with reading(folder):
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
            for name, tensor in sharded.tensors.items()
        }
        read_rows(folder, sharded, {name: (tensors[name], 0) for name in sharded.in_files})
    model, moments = {}, {}
    for name, tensor in tensors.items():
        part, _, name = name.partition(".")
        if part == "model":
            model[name] = tensor
        else:
            parameter, _, key = name.rpartition(".")
            moments.setdefault(parameter, {})[key] = tensor
    return facts | {"model": model, "optimizer": {"state": moments, "param_groups": param_groups}}


def read_facts(folder: Path) -> tuple[dict, Sharded]:
    """What facts.pt holds, and apart from it what it says of the shards. Their files are there, in the size that they
    had."""
    with reading(folder):
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder}: not a sharded state (expected a folder with {FACTS})") from None
        if FORMER_FORMAT in names:
            raise UserError(
                f"{folder}: a sharded state of an earlier version, not read any more, as that could run code; {WAY_OUT}"
            )
        if FACTS not in names:
            raise damaged(folder, f"{FACTS} is missing")
        facts, flaw = unpacked(io.BytesIO((folder / FACTS).read_bytes()))
        if flaw is not None:
            raise damaged(folder, f"{FACTS}: {flaw}")
        sharded = checked(Facts, facts, f"{folder}: a damaged sharded state ({FACTS})", WAY_OUT).sharded
        wrong = {FACTS, *sharded.files} ^ {name for name in names if not name.startswith(".")}
        if wrong:
            raise damaged(folder, f"{min(wrong)} {'is missing' if min(wrong) in sharded.files else 'is no file of it'}")
        for name, file in sharded.files.items():
            found = os.stat(folder / name)
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.bytes:
                raise damaged(folder, f"{name}: expected a file of {file.bytes:,} bytes, found {found.st_size:,}")
    return {key: entry for key, entry in facts.items() if key != "sharded"}, sharded


def check_bytes(folder: Path, sharded: Sharded, names: Iterable[str]) -> None:
    """UserError where the CRC-32 of one of the files `names` is not that of what was written."""
    with reading(folder):
        for name in names:
            if crc32_of(folder / name) != sharded.files[name].crc32:
                raise damaged(folder, f"{name}: the CRC-32 of its bytes is not that of what was written")


def check_headers(folder: Path, sharded: Sharded) -> None:
    """UserError where the files do not hold all rows of all tensors that are to be in them, and nothing else."""
    expected = sharded.in_files
    n_rows = dict.fromkeys(expected, 0)
    with reading(folder):
        for file in sharded.files:
            with safe_open(folder / file, "pt", backend="pread") as shard:
                wrong = expected.keys() ^ set(shard.keys())
                if wrong:
                    raise damaged(
                        folder,
                        f"{file}: {min(wrong)} {'is missing' if min(wrong) in expected else 'is no tensor of it'}",
                    )
                for name, tensor in expected.items():
                    rows = shard.get_slice(name)
                    shape = rows.get_shape()
                    if not shape or shape[1:] != list(tensor.shape[1:]) or shape[0] and rows[:1].dtype != tensor.dtype:
                        raise damaged(folder, f"{file}: {name}: expected rows of {shape_of(tensor)}, found {shape}")
                    n_rows[name] += shape[0]
    for name, tensor in expected.items():
        if [n_rows[name], *tensor.shape[1:]] != list(tensor.shape):
            raise damaged(folder, f"{name}: expected {shape_of(tensor)}, found {n_rows[name]} rows")


def check_fit(folder: Path, sharded: Sharded, tensors: dict[str, torch.Tensor], param_groups: list[dict]) -> None:
    """UserError where the state is not one of the model and the optimizer whose `tensors` and `param_groups` are
    given."""
    wrong = sharded.tensors.keys() ^ tensors.keys()
    if wrong:
        raise UserError(
            f"{folder}: not a state of this model: {min(wrong)} is "
            f"{'missing' if min(wrong) in tensors else 'no part of it'}"
        )
    for name, tensor in tensors.items():
        expected, found = shape_of(tensor), shape_of(sharded.tensors[name])
        if expected != found:
            raise UserError(f"{folder}: not a state of this model: {name}: expected {expected}, found {found}")
    if [group["params"] for group in param_groups] != [group.params for group in sharded.param_groups]:
        raise UserError(f"{folder}: not a state of this optimizer: its groups hold other parameters")


def own_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of a tensor that this process has, and the number of the first one."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh = tensor.device_mesh
    _, first = Shard.local_shard_size_and_offset(tensor.shape[0], mesh.size(), mesh.get_local_rank())
    return tensor.to_local(), first


def read_rows(folder: Path, sharded: Sharded, targets: dict[str, tuple[torch.Tensor, int]]) -> None:
    """Fill each of `targets`, which holds the rows of the tensor of its name from a given one on, from the files."""
    passed = dict.fromkeys(targets, 0)  # rows in the files before this one
    with reading(folder):
        for file in sharded.files:
            with safe_open(folder / file, "pt", backend="pread") as shard:
                for name, (target, first) in targets.items():
                    rows = shard.get_slice(name)
                    before, passed[name] = passed[name], passed[name] + rows.get_shape()[0]
                    begin, end = max(before, first), min(passed[name], first + len(target))
                    if begin < end:
                        target[begin - first : end - first].copy_(rows[begin - before : end - before])


def crc32_of(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            value = zlib.crc32(block, value)
    return value


def shape_of(tensor: torch.Tensor) -> str:
    """Dtype and shape, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def damaged(folder: Path, what: str) -> UserError:
    """The error for a state that is not as it was written."""
    return UserError(f"{folder}: a damaged sharded state ({what}); {WAY_OUT}")


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what fails while `folder` is read into a UserError, which calls it damaged only where its bytes are
    wrong."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot read the sharded state: {describe_os_error(error)}") from None
    except SafetensorError as error:
        if "os error" in str(error):
            raise UserError(f"{folder}: cannot read the sharded state: {error}") from None
        raise damaged(folder, str(error)) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise UserError(f"{folder}: not enough memory to read the sharded state") from None
