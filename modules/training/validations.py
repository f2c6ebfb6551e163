"""The held-out loss of each window at each validation of a run, kept so that an arrow can be followed through training
with its interval.

One small file a validation, `<folder>/<step>.npy`: float32 [windows], or [orders, windows] where a model reads in
several, nats per token, means over each window. (4 bytes a window: 64 kB for a million held-out tokens at context 64.)
"""

from pathlib import Path

import numpy as np

from modules.system.errors import UserError
from modules.system.files import replacing


def write(folder: Path, step: int, losses_W: np.ndarray) -> None:
    """Keep the losses of the validation at `step`."""
    with replacing(folder / f"{step:012d}.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, losses_W.astype(np.float32), allow_pickle=False)


def steps(folder: Path) -> list[int]:
    """The steps whose validations are there, in order; empty where there is no such folder."""
    try:
        return sorted(
            int(entry.stem) for entry in folder.iterdir() if entry.suffix == ".npy" and entry.stem.isdecimal()
        )
    except FileNotFoundError:
        return []


def read(folder: Path, step: int, *shape: int) -> np.ndarray:
    """The losses [windows], or [orders, windows], of the validation at `step`. UserError where the file is not what
    `write` wrote of this shape."""
    path = folder / f"{step:012d}.npy"
    try:
        losses_W = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path}: not the losses of a validation ({error}); without this file the report leaves the step out"
        ) from None
    if losses_W.shape != shape or losses_W.dtype != np.float32 or not np.isfinite(losses_W).all():
        raise UserError(
            f"{path}: expected {' x '.join(f'{n:,}' for n in shape)} finite losses of 32 bits, found {losses_W.dtype} "
            f"{list(losses_W.shape)}; without this file the report leaves the step out"
        )
    return losses_W
