"""Writing files: whole or not at all, over ordinary files only, with nothing left behind, and with errors that say
where and what to do."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.system import files
from modules.system.errors import UserError, describe_os_error
from modules.system.files import replacing, sweep
from tests.toy import ROOT

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has none of these")
NAMES = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .map(lambda name: name.encode()[:255].decode("utf-8", "ignore"))
    .filter(lambda name: name not in (".", ".."))
)


def write(path, data: bytes = b"new") -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def child(source: str, *arguments, **options) -> subprocess.Popen:
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{source}"
    return subprocess.Popen([sys.executable, "-c", source, *map(str, arguments)], text=True, **options)


# What is written
# --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(name=NAMES)
def test_any_name_that_a_file_can_have_is_written(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("any")
    for data in (b"first", b"second"):
        write(folder / name, data)
        assert [entry.name for entry in folder.iterdir()] == [name] and (folder / name).read_bytes() == data


def test_whatever_writes_it(tmp_path):
    with replacing(tmp_path / "a.h5") as temporary, h5py.File(temporary, "w") as file:
        file["x"] = [1]
    with replacing(tmp_path / "a.pt") as temporary:
        torch.save({"x": 1}, temporary)
    with replacing(tmp_path / "a.npy") as temporary, open(temporary, "wb") as out:
        np.save(out, np.ones(3))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["x"][0] == 1
    assert torch.load(tmp_path / "a.pt", weights_only=True) == {"x": 1} and np.load(tmp_path / "a.npy").sum() == 3
    assert not hidden(tmp_path)


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "a", b"old")
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), replacing(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise failure
    assert (tmp_path / "a").read_bytes() == b"old" and not hidden(tmp_path)


@posix
def test_a_new_file_has_the_usual_mode_and_a_replaced_one_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o755, 0o444):
            (tmp_path / "new").chmod(mode)
            with replacing(tmp_path / "new") as temporary:
                assert temporary.stat().st_mode & 0o077 & ~mode == 0, "nobody reads meanwhile what he could not before"
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    finally:
        os.umask(before)


def test_threads_that_write_the_same_file_do_not_meet(tmp_path):
    together, seen = threading.Barrier(8), []

    def work(number: int) -> None:
        for _ in range(20):
            together.wait()
            write(tmp_path / "a", bytes([number]) * 10_000)
            seen.append((tmp_path / "a").read_bytes())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160 and all(len(data) == 10_000 and len(set(data)) == 1 for data in seen)
    assert not hidden(tmp_path)


# What it is written over
# ------------------------------------------------------------------------------------------------


@posix
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    for target in ("there/file", "there/none yet", "no folder yet/file"):
        link = tmp_path / f"link to {Path(target).parent.name} {Path(target).name}"
        link.symlink_to(target)
        write(link)
        assert link.is_symlink() and (tmp_path / target).read_bytes() == b"new" and not (tmp_path / target).is_symlink()
    assert not hidden(tmp_path) and not hidden(tmp_path / "there")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="round") as caught:
        write(tmp_path / "round")
    assert "circle" in describe_os_error(caught.value)


def test_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(UserError, match="found a folder of that name"), replacing(tmp_path):
        raise AssertionError("the work has begun")


@posix
def test_a_fifo_is_written_into_and_stays_one(tmp_path):
    fifo, received = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    with replacing(fifo) as temporary, open(temporary, "wb") as out:
        out.seek(3)  # as whoever writes backwards, or an .h5, does
        out.write(b"def")
        out.seek(0)
        out.write(b"abc")
    reader.join()
    assert received == [b"abcdef"] and stat.S_ISFIFO(fifo.stat().st_mode) and not hidden(tmp_path)


@posix
def test_a_device_is_written_into_and_stays_one(tmp_path):
    """Nodes of our own with the numbers of /dev/null and /dev/full: nothing can happen to the real ones."""
    try:
        for name, minor in (("null", 3), ("full", 7)):
            os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            (tmp_path / f"link to {name}").symlink_to(name)
        (tmp_path / "null").read_bytes()
    except OSError:
        pytest.skip("no devices can be made here")
    for name in ("null", "link to null"):
        write(tmp_path / name)
    for name in ("full", "link to full"):
        with pytest.raises(OSError) as caught:
            write(tmp_path / name)
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / name)
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in ("null", "full")) and not hidden(tmp_path)


@posix
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_standard_output_is_written_into_after_what_was_printed(tmp_path, mode):
    """Also where it is an ordinary file: the shell's `> file` and `>> file`."""
    (tmp_path / "out").write_bytes(b"before\n")
    with open(tmp_path / "out", mode) as out:
        source = """
from modules.system.files import replacing
print("first")
with replacing("/dev/stdout") as temporary:
    temporary.write_text("second\\n")
print("third")"""
        assert child(source, stdout=out).wait() == 0
    assert (tmp_path / "out").read_text() == ("before\n" if mode == "ab" else "") + "first\nsecond\nthird\n"


@posix
def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)  # as if it could be guessed
    write(tmp_path / "victim", b"precious")
    (tmp_path / files._temporary_name("a")).symlink_to("victim")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a")
    assert (tmp_path / "victim").read_bytes() == b"precious" and not (tmp_path / "a").exists()


def test_temporary_names_cannot_be_guessed_and_are_short():
    names = [files._temporary_name("é" * 120 + "\n/") for _ in range(100)]
    assert len({name.split(".")[-2] for name in names}) == 100
    assert all(len(name.encode()) <= 143 and files.TEMPORARY.fullmatch(name) for name in names)


# What killed writers leave
# ----------------------------------------------------------------------------------------------


@posix
def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(tmp_path):
    hang = """
from modules.system.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    sys.stdin.read()"""
    writers = [
        child(hang, tmp_path / name, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for name in ("killed", "alive")
    ]
    killed, alive = (Path(writer.stdout.readline().strip()) for writer in writers)
    sweep(tmp_path)
    assert killed.exists() and alive.exists()
    writers[0].kill()
    deadline = time.monotonic() + 60
    while killed.exists():  # gone already while nobody has asked for its exit status
        assert time.monotonic() < deadline
        sweep(tmp_path)
    assert alive.exists()
    writers[1].communicate()
    for writer in writers:
        writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["alive"]


@posix
def test_only_what_is_surely_left_over_is_swept(tmp_path):
    here, start = files._machine(), files._start_of(os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    tail = "0123456789abcdef.tmp"
    # A process that is gone; another machine's, quiet for long.
    dead = {f".x.{here}.{gone.pid}.{start or 0}.{tail}", f".x.ffffffffffff.1.1.{tail}"}
    if start:
        dead.add(f".x.{here}.{os.getpid()}.{int(start) - 1}.{tail}")  # another process had this one's number before
    kept = {
        f".x.{here}.{os.getpid()}.{start or 0}.{tail}",
        f".y.ffffffffffff.1.1.{tail}",  # this process; another machine's, fresh
        ".x.1234.tmp",
        ".notes.tmp",
        "x.tmp",
        f"x.{here}.{gone.pid}.0.{tail}",
        f".x.{here}.{gone.pid}.0.{tail}.txt",
    }  # users'
    for name in dead | kept:
        (tmp_path / name).write_bytes(b"")
    long_ago = time.time() - 2 * files.QUIET_S
    for name in [*kept - {f".y.ffffffffffff.1.1.{tail}"}, f".x.ffffffffffff.1.1.{tail}"]:
        os.utime(tmp_path / name, (long_ago, long_ago))
    for name in (left := f".z.{here}.{gone.pid}.0.{tail}", own := f".z.{here}.{os.getpid()}.{start or 0}.{tail}"):
        (tmp_path / name / "inside").mkdir(parents=True)  # folders that were being written, by the dead and the living
    write(tmp_path / "a")  # the first of this process in this folder
    assert {path.name for path in tmp_path.iterdir()} == kept | {"a", own} and not (tmp_path / left).exists()
    sweep(tmp_path / "not there")


# What fails
# -------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("unsupported", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM])
def test_a_file_system_without_fsync_is_no_error(tmp_path, monkeypatch, unsupported):
    def fsync(_):
        raise OSError(unsupported, os.strerror(unsupported))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@posix
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_bytes_that_did_not_reach_the_disk_are_an_error(tmp_path, monkeypatch, number):
    write(tmp_path / "a", b"old")

    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) as caught:
        write(tmp_path / "a")
    assert (
        str(tmp_path / "a") in describe_os_error(caught.value)
        and (tmp_path / "a").read_bytes() == b"old"
        and not hidden(tmp_path)
    )


@posix
@pytest.mark.parametrize("writer", ["open", "torch"])
def test_a_file_that_grows_too_large_is_named_with_what_to_do(tmp_path, writer):
    write(tmp_path / "a", b"old")
    process = child(
        """
import resource
from modules.system.errors import one_line_errors
from modules.system.files import replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
@one_line_errors
def main():
    with replacing(sys.argv[1]) as temporary, open(temporary, "wb") as out:
        if sys.argv[2] == "torch":
            import torch
            torch.save({"x": torch.ones(100_000)}, out)
        else:
            out.write(bytes(100_000))
main()""",
        tmp_path / "a",
        writer,
        stderr=subprocess.PIPE,
    )
    said = process.communicate()[1]
    assert (
        process.returncode == 1
        and said.startswith(f"error: {tmp_path / 'a'}: File too large; ")
        and "ulimit -f" in said
    )
    assert len(said.splitlines()) == 1
    assert (tmp_path / "a").read_bytes() == b"old" and not hidden(tmp_path)


@pytest.mark.parametrize(
    "number, advice",
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "quota"), (errno.EROFS, "can be written"), (errno.EFBIG, "ulimit -f")],
)
def test_a_write_that_fails_names_the_file_and_what_to_do(tmp_path, number, advice):
    """A write knows no name, an open that of the temporary file, a copy (shutil) two."""
    for names in ((), ("temporary",), ("copied from", None, "temporary")):
        with pytest.raises(OSError) as caught, replacing(tmp_path / "a") as temporary:
            raise OSError(
                number, os.strerror(number), *(str(temporary) if name == "temporary" else name for name in names)
            )
        assert caught.value.filename == str(tmp_path / "a") and caught.value.errno == number
        said = describe_os_error(caught.value)
        assert said.startswith(f"{tmp_path / 'a'}: {os.strerror(number)}; ") and advice in said


def test_errors_of_what_the_block_reads_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        open(tmp_path / "source")
    assert caught.value.filename == str(tmp_path / "source")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert describe_os_error(caught.value).startswith(f"while writing {tmp_path / 'a'}: ")
    with pytest.raises(OSError, match="while writing .*/a: of its own kind"), replacing(tmp_path / "a"):
        raise OSError("of its own kind")
    with pytest.raises(RuntimeError, match="a fault of ours"), replacing(tmp_path / "a"):
        raise RuntimeError("a fault of ours")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a"):
        with pytest.raises(OSError) as caught:
            write(path)
        assert str(tmp_path / "file") in (said := describe_os_error(caught.value)) and "in the way of a folder" in said


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError("no number\nand two lines"), "no number"),
        (OSError(), "OSError"),
        (OSError(errno.ENOENT, "", b"a\xff"), "a\udcff: "),
        (OSError(errno.EBADF, "", 3), os.strerror(errno.EBADF)),
        (OSError(errno.ENOENT, "", Path("a")), "a: "),
    ],
)
def test_every_os_error_is_described_in_a_line(error, said):
    assert describe_os_error(error).startswith(said) and "\n" not in describe_os_error(error)
