"""Writing files so that a kill at any instant leaves the old or the new one, never half of one.

All but logs, which grow line by line, and sharded states, whose folders are renamed whole (sharded.py), is written
through `replacing`: the bytes go to a temporary file in the same folder, are flushed to the disk (`fsync`), and only
then take the final name (`os.replace`, atomic on every platform that Python supports).

A killed writer leaves its temporary file, 26 GB where it is a state of the XL model. The name says who writes it, so
that `sweep` can delete what nobody writes any more: `.<label>.<machine>.<process>.<its start>.<random>.tmp`.
"""

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from modules.system.errors import UserError

TEMPORARY = re.compile(
    r"\.[\w.-]*\.(?P<machine>[0-9a-f]{12})\.(?P<process>[0-9]{1,10})\.(?P<start>[0-9]+)\.[0-9a-f]{16}\.tmp", re.ASCII
)
LABEL_LENGTH = (
    40  # so that the whole stays under the 143 bytes that some file systems allow, however long the target's name
)
# a writer of another machine that wrote nothing for so long is dead: a clock may be wrong by minutes, an fsync take
# some
QUIET_S = 3600.0
# What file systems (of networks, above all) say that cannot flush a folder, or a file, on demand.
NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # only a write fails so

_swept: set[Path] = set()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`; when the block ends well it becomes `path`, else it is
    removed.

    The block may open it "wb" or give its path to h5py, torch.save or numpy. Missing parent folders are made. A file
    that is replaced hands on its mode. Where `path` is a link, the link stays and what it points to is replaced. What
    is no ordinary file (a FIFO, a device, this process's standard output) stays too: the finished bytes are written
    into it. No two calls share a temporary file.

    Raises UserError where `path` is a folder, and OSError with `path` as its `filename` where it cannot be written; it
    is then as before.
    """
    path = Path(path)
    before = _status(path)
    if before is not None and (not stat.S_ISREG(before.st_mode) or _own_output(before) is not None):
        with _writing_into(path, before) as temporary:
            yield temporary
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _swept:  # once a process: a folder of chunks has thousands of entries
        _swept.add(folder)
        sweep(folder)
    temporary = folder / _temporary_name(target.name)
    # Readable to nobody who could not read what it replaces; the exact mode comes last, as it may forbid writing.
    mode = 0o666 if before is None else before.st_mode & 0o666 | 0o600
    with _naming(path, temporary):
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode))
            yield temporary
            with open(temporary, "rb+") as file:
                _sync(file.fileno())
            if before is not None:
                with contextlib.suppress(OSError):  # not every file system has modes
                    os.chmod(temporary, stat.S_IMODE(before.st_mode))
            os.replace(temporary, target)
            sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of an empty temporary folder beside `path`; when the block ends well it becomes `path`, whole,
    else it is removed.

    Raises UserError where `path` is there and is no empty folder, and OSError with `path` as its `filename` where it
    cannot be written.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    check_new(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    temporary = target.parent / _temporary_name(target.name)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb+") as written:
                _sync(written.fileno())
        check_new(path)
        if target.is_dir():
            target.rmdir()  # Windows renames onto nothing
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        inside = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(temporary)
        if not inside or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """UserError where `path` is there and is no empty folder."""
    if path.is_dir():
        if any(path.iterdir()):
            raise UserError(f"{path}: expected a new or an empty folder, found one with files in it; name another")
    elif os.path.lexists(path):
        raise UserError(f"{path}: expected a new or an empty folder, found something else of that name")


@contextlib.contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """Yield the path of an empty file in `folder` that is removed when the block ends; of a killed process, by
    `sweep`."""
    path = folder / _temporary_name("scratch")
    with _naming(path, path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _status(path: Path) -> os.stat_result | None:
    """What `path` is, links followed; None where there is nothing. UserError where it is a folder."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: expected the name of a file to write, found a folder of that name")
    return status


def _own_output(status: os.stat_result) -> int | None:
    """The descriptor, 1 or 2, through which this process writes its output or errors into just this file; else None."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


@contextlib.contextmanager
def _writing_into(path: Path, status: os.stat_result) -> Iterator[Path]:
    """As `replacing`, for what must not be replaced: its bytes are gathered elsewhere, as a block may seek, and then
    written in one go."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "gathered"
        temporary.touch()
        with _naming(temporary, temporary):
            yield temporary
        descriptor = _own_output(status)
        with _naming(path, path):
            if descriptor is None:
                opened = os.open(path, os.O_WRONLY)
            else:  # not opened anew: that would begin at its start
                opened = os.dup(descriptor)
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                        stream.flush()
            with open(temporary, "rb") as source, open(opened, "wb") as out:
                shutil.copyfileobj(source, out)


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Name `path` in the errors of writing its temporary file: they have that one's name, or none at all."""
    try:
        yield
    except RuntimeError as error:  # torch.save's, over the OSError of the file that it was given
        behind = error.__context__
        if not isinstance(behind, OSError) or behind.errno not in NO_ROOM:
            raise
        raise OSError(behind.errno, os.strerror(behind.errno), str(path)) from error
    except OSError as error:
        named = {
            str(name) for name in (error.filename, error.filename2) if name is not None
        }  # two where a file is copied or renamed
        if named and str(temporary) not in named:
            raise
        if error.errno is None:  # numpy and HDF5 have errors of their own
            raise OSError(f"while writing {path}: {error}") from error
        known = named or error.errno in NO_ROOM  # else it may be of something that the block reads
        where = str(path) if known else f"while writing {path}"
        raise OSError(error.errno, os.strerror(error.errno), where) from error


def _sync(descriptor: int) -> None:
    """Have the disk take what was written, where the file system can be asked to."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can: Windows opens no folders, some file systems
    flush none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows; or a folder that may be written but not listed
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: str | os.PathLike) -> None:
    """Delete the temporary files and folders in `folder` that killed processes left. Never fails: what cannot be
    deleted stays.

    One of this machine goes if its process does not live any more. Whether one of another machine (or container) lives
    cannot be seen from here: it goes once nothing was written to it for QUIET_S.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (name := TEMPORARY.fullmatch(entry.name)) and _is_left_over(entry, name):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _is_left_over(entry: os.DirEntry, name: re.Match) -> bool:
    if name["machine"] == _machine() and os.name != "nt":  # there os.kill would end the process that it asks about
        return not _lives(int(name["process"]), name["start"])
    try:
        quiet_s = time.time() - entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # just renamed
        return False
    return quiet_s > QUIET_S


def _temporary_name(target: str) -> str:
    """A name that nobody can guess, for a file of this process; it begins like the target's as far as that is plain."""
    label = re.sub(r"[^\w.-]", "_", target[:LABEL_LENGTH], flags=re.ASCII)
    return f".{label}.{_machine()}.{os.getpid()}.{_start_of(os.getpid()) or 0}.{secrets.token_hex(8)}.tmp"


@functools.cache
def _machine() -> str:
    """The machine since its start, and the container on it: where a process id means a process."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # not Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def _lives(process: int, start: str) -> bool:
    """Whether this process of this machine still runs; where the system does not say when it started, whether one of
    that number does."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is there, and another user's
    return _start_of(process) in (start, None)


def _start_of(process: int) -> str | None:
    """When a process started, in the kernel's ticks, "ended" where it only waits to be forgotten; None where the system
    does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in (b"Z", b"X") else fields[19].decode()
