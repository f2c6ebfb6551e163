"""Room on the disk: how much the ids of a text will take, said and checked before work of hours begins."""

import os
import shutil
from pathlib import Path

from modules.system.errors import UserError
from modules.tok_utils.encoder import Encoder
from modules.tok_utils.progress import readable, say
from modules.tok_utils.readers import Reading
from modules.tok_utils.text_source import PLAIN, TextSource, spread_samples

MARGIN = 1.1  # on what the samples say


def check_space(
    texts: list[Path],
    encoder: Encoder,
    chunks_folder: Path,
    out_h5_folder: str | os.PathLike | None = None,
    reading: Reading = PLAIN,
) -> None:
    """Say how much room the chunks and the .h5 will take. Raises UserError where their disks have less left."""
    need = sum(_bytes_of_ids(text, encoder, reading) for text in texts)
    have = sum(chunk.stat().st_size for chunk in chunks_folder.glob("chunk_*.pt"))
    say(
        f"room needed, about: {readable(max(0, need - have))} in {chunks_folder}"
        f"{' (more than there is)' if have else ''}, {readable(need)} for the .h5"
    )
    wanted = [(chunks_folder, max(0, need - have))] + (
        [(Path(out_h5_folder), need)] if out_h5_folder is not None else []
    )
    by_disk = {}
    for folder, size in wanted:
        existing = existing_parent(folder)
        first, total = by_disk.get(existing.stat().st_dev, (folder, 0))
        by_disk[existing.stat().st_dev] = first, total + size
    for folder, size in by_disk.values():
        require(folder, size)


def require(folder: Path, size: int) -> None:
    """Raises UserError where the disk that holds (or will hold) `folder` has fewer than `size` bytes left."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < size:
        raise UserError(
            f"{folder}: {readable(size)} are needed and {readable(free)} are left on that disk; make room first"
        )


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _bytes_of_ids(text: Path, encoder: Encoder, reading: Reading) -> int:
    """An estimate of the bytes that the ids of a text will take, from samples of it."""
    samples = [sample.encode("utf-8") for sample in spread_samples(text, reading)]
    ids = sum(encoder.encode(sample).nbytes for sample in samples)
    with TextSource(text, reading) as source:
        size = source.estimated_size()
    return int(MARGIN * size * ids / max(1, sum(map(len, samples))))
