"""Writing files so that a kill at any instant leaves the old or the new one, never half of one.

Everything the project writes goes through `replacing`: the bytes go to a
temporary file in the same folder, are flushed to the disk (`fsync`), and only then
take the final name (`os.replace`, atomic on every platform that Python supports).
"""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well it becomes `path`, else it is removed.

    The block may create the temporary file in any way it likes (open, h5py, torch.save).
    Missing parent folders are made. The process id is in the temporary name, so two
    processes cannot write the same one.

    Raises OSError where the folder cannot be written or the disk is full; `path` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. A no-op on Windows, where folders cannot be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
