"""Held-out losses as a file of their own: what a measurement leaves for others, and what others' measurements can be
judged by.

`losses.npz` holds, for each comparison NAME and each order of reading (forward, backward, or any other word), an array
`ORDER_NAME` (or just `ORDER`) of nats per token, float32, [seeds, windows, tokens] in text order, or [seeds, windows]
of means; and maybe `documents_NAME` [windows], the document of each window, or, where each seed has held out another
fold of the text, `folds_NAME` [seeds], the first token of each. Seeds of two orders belong together by their place.
"""

import csv
import errno
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modules.data.orders import FORWARD, NAMES
from modules.measurement.documents import sums_by
from modules.system.errors import UserError
from modules.system.files import replacing

DOCUMENTS, FOLDS = "documents", "folds"
# Orders whose names have a "_" themselves; any other word ends at the first.
ORDER = re.compile(
    rf"({'|'.join(name for name in NAMES if '_' in name)}|positions_[0-9a-f]{{8}}|[^_]*)(?:_(.*))?", re.S
)


@dataclass
class Losses:
    """The losses of one comparison by order, nats [seeds, windows, tokens], and where they are known the documents of
    its windows [windows], any labels (`write_losses` gets groups of neighbouring documents), and of its tokens [1 or
    seeds, windows x tokens]. folds: the first token of each seed's held-out fold [seeds]; None where all have the
    same."""

    by_order: dict[str, np.ndarray] = field(default_factory=dict)
    documents: np.ndarray | None = None
    document_of_tokens: np.ndarray | None = None
    folds: np.ndarray | None = None


def write_losses(folder: Path, losses: Mapping[str, Losses]) -> dict[str, Path]:
    """Write `losses.npz`, `losses.csv` with a row a window and, where documents are known, `losses-by-document.csv`.
    Their paths."""
    arrays = {
        f"{order}_{name}": array.astype(np.float32)
        for name, each in losses.items()
        for order, array in each.by_order.items()
    }
    arrays |= {f"{DOCUMENTS}_{name}": each.documents for name, each in losses.items() if each.documents is not None}
    arrays |= {f"{FOLDS}_{name}": each.folds for name, each in losses.items() if each.folds is not None}
    written = {"npz": folder / "losses.npz", "csv": folder / "losses.csv"}
    with replacing(written["npz"]) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_csv(written["csv"], ["window"], losses, window_rows)
    if known := {name: each for name, each in losses.items() if each.document_of_tokens is not None}:
        written["by document"] = folder / "losses-by-document.csv"
        write_csv(written["by document"], ["document", "first_token", "tokens"], known, document_rows)
    return written


def write_csv(path: Path, columns: list[str], losses: Mapping[str, Losses], rows_of: Callable) -> None:
    """A row for each of what `rows_of` gives of each comparison's losses [windows, tokens] by order and seed."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comparison", "order", "seed", *columns, "nats_per_token"])
        for name, each in losses.items():
            for order, array in each.by_order.items():
                for seed, losses_WT in enumerate(array):
                    rows = rows_of(losses_WT, each, seed)
                    writer.writerows([name, order, seed, *cells, f"{mean:.6f}"] for *cells, mean in rows)


def window_rows(losses_WT: np.ndarray, *_) -> Iterable[tuple]:
    return enumerate(losses_WT.mean(axis=1))


def document_rows(losses_WT: np.ndarray, losses: Losses, seed: int) -> Iterable[tuple]:
    """Number, first token in the held-out text, tokens there and mean loss of each document."""
    assert losses.document_of_tokens is not None  # asked for those that have it
    of_seed = losses.document_of_tokens[0 if losses.folds is None else seed]
    number, first, tokens, sums = sums_by(of_seed, losses_WT.ravel())
    return zip(number, first, tokens, sums / tokens, strict=True)


def read_losses(path: str | os.PathLike, reference: str = FORWARD) -> dict[str, Losses]:
    """The losses in a .npz by the name of their comparison ("" where arrays have none), each with those of the
    reference.

    Raises UserError, one line, where it is no such file, an array is no losses, or those of one comparison do not fit
    each other.
    """
    found: dict[str, Losses] = {}
    for full_name, array in read_arrays(path).items():
        match = ORDER.fullmatch(full_name)
        assert match is not None, "any name has an order"
        order, name = match.groups(default="")
        each = found.setdefault(name, Losses())
        if order == DOCUMENTS:
            each.documents = array
        elif order == FOLDS:
            each.folds = array
        else:
            each.by_order[order] = losses_in(array, f"{path}: {full_name}")
    for name, each in found.items():
        check_fit(each, f"{path}: {name or 'its arrays'}", reference)
    if not found:
        raise UserError(f"{path}: holds no arrays; expected forward_NAME and backward_NAME")
    return found


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a .npz by their names. UserError where it is none, or damaged: each array has a checksum."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(
                    f"{path}: expected a .npz with arrays forward_NAME and backward_NAME, found a single array"
                )
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of losses") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile seeks before the start of a file that is cut
            raise
        raise UserError(f"{path}: not a .npz of losses, or a damaged one") from None
    except (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a .npz of losses, or a damaged one ({reason})") from None


def losses_in(array: np.ndarray, source: str) -> np.ndarray:
    """An array of losses as [seeds, windows, tokens] float64."""
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(
            f"{source}: expected losses [seeds, windows] or [seeds, windows, tokens], found {array.dtype} "
            f"{list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise UserError(f"{source}: holds losses that are not finite")
    if array.min() < 0:
        raise UserError(f"{source}: holds losses below zero; expected nats per token, not log-probabilities")
    return np.asarray(array if array.ndim == 3 else array[..., None], dtype=np.float64)


def check_fit(losses: Losses, source: str, reference: str) -> None:
    """UserError unless there is the reference and another order, all alike in shape, with two windows or more."""
    shapes = {order: array.shape for order, array in losses.by_order.items()}
    if reference not in shapes or len(shapes) < 2:
        raise UserError(
            f"{source}: expected losses of {reference} and of another order, found {', '.join(shapes) or 'none'}"
        )
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{order} {list(shape)}" for order, shape in shapes.items())
        raise UserError(f"{source}: expected equal shapes in all orders, found {found}")
    n_seeds, n_windows, _ = shapes[reference]
    if n_windows < 2:
        raise UserError(f"{source}: expected at least two windows, found {n_windows}")
    if losses.documents is not None and losses.documents.shape != (n_windows,):
        raise UserError(
            f"{source}: {DOCUMENTS}: expected one for each of {n_windows:,} windows, found "
            f"{list(losses.documents.shape)}"
        )
    if losses.folds is not None and (losses.folds.shape != (n_seeds,) or len(np.unique(losses.folds)) < n_seeds):
        raise UserError(
            f"{source}: {FOLDS}: expected the first token of another fold for each of {n_seeds} seeds, found "
            f"{losses.folds.dtype} {list(losses.folds.shape)}, {len(np.unique(losses.folds))} different"
        )
