"""The lock of a run: held by one process at a time, whatever the run is called, and no obstacle where there are no
locks."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from modules.system import files
from modules.system.errors import UserError
from modules.training.checkpoint import backup_path
from modules.training.interruption import only_run
from modules.training.parallel import Processes

HERE = Processes(0, 1, torch.device("cpu"))


def test_a_run_is_trained_by_one_process_at_a_time_and_others_beside_it(tmp_path):
    names = ["lr.1", "lr.2", "lr", "lr.1.state", "a\nb", "é" * 110]
    for name in names:
        with only_run(tmp_path / f"{name}.state", HERE):
            for other in names:
                if other == name:
                    with (
                        pytest.raises(UserError, match="another process is training"),
                        only_run(tmp_path / f"{other}.state", HERE),
                    ):
                        pass
                else:
                    with only_run(tmp_path / f"{other}.state", HERE):
                        pass
        with only_run(tmp_path / f"{name}.state", HERE):
            pass  # free again


@pytest.mark.skipif(os.name == "nt", reason="Windows always has locks")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_it_trains_and_warns_once(tmp_path, monkeypatch, capsys, number):
    import fcntl

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_run(tmp_path / "a.state", HERE):
        pass
    (said,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in said and os.strerror(number) in said


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX users")
def test_a_lock_file_that_may_only_be_read_is_a_lock_too():
    folder = Path(tempfile.mkdtemp())  # not in tmp_path, which only its owner may enter
    root = os.geteuid() == 0
    try:
        with only_run(folder / "a.state", HERE):
            pass
        (folder / "a.lock").chmod(0o444)
        folder.chmod(0o777)
        if root:
            os.seteuid(65534)  # nothing is forbidden to root
        with only_run(folder / "a.state", HERE):
            with pytest.raises(UserError, match="another process"), only_run(folder / "a.state", HERE):
                pass
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_it_starts_with_a_sweep(tmp_path):
    left = [folder / f".a.state.ffffffffffff.1.1.{'0' * 16}.tmp" for folder in (tmp_path, tmp_path / "backups")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"26 GB")
        os.utime(path, (0, 0))
    held = tmp_path / files._temporary_name("b.state")  # of another run, which this process writes just now
    held.touch()
    with only_run(tmp_path / "a.state", HERE):
        assert held.exists() and not any(path.exists() for path in left)


def test_names_too_long_for_backups_are_refused_at_the_start(tmp_path):
    fits = tmp_path / f"{'a' * 225}.state"
    with only_run(fits, HERE):
        backup_path(fits, 10**18).parent.mkdir()
        backup_path(fits, 10**18).touch()
    with pytest.raises(UserError, match="too long a name for backups"), only_run(tmp_path / f"{'a' * 226}.state", HERE):
        pass
