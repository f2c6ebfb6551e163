"""Disks that are full, fail or refuse: each operation in turn, and file systems that are really too small.

A command that meets one ends in one line that says where (or goes on, where what failed was not needed); what was there
stays whole, and the next undisturbed command ends with the same bits. `-m slow -s` shows the counts.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults import (
    LASTING,
    TEXT_BYTES,
    Failing,
    Moment,
    Trials,
    contents,
    copied,
    difference,
    in_process,
    measure,
    tokenize,
    train,
    write_toy,
)
from tests.tok_texts import sample_text
from tests.training.test_kills import aimed, undisturbed

# What each operation may fail with, in turn.
FAILURES = {
    "open": (errno.EACCES, errno.ENOSPC, errno.EIO, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "copy": (errno.ENOSPC, errno.EIO),
    "record": (errno.ENOSPC,),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "rename": (errno.EACCES, errno.ENOSPC, errno.EIO),
    "mkdir": (errno.EACCES, errno.ENOSPC),
    "unlink": (errno.EACCES, errno.EIO),
    "rmdir": (errno.EACCES,),
    "truncate": (errno.EFBIG, errno.EIO),
    "hdf5": (errno.ENOSPC, errno.EIO),
}


def failures(moments: list[Moment]) -> list[Failing]:
    """One failure at each moment; the errors take turns."""
    return [
        Failing(moment, FAILURES[moment.action][number % len(FAILURES[moment.action])])
        for number, moment in enumerate(moments)
    ]


def settled(trials: Trials, fault, folder: Path, expected: dict, work, *args, before: dict, failed) -> None:
    """Judge how the disturbed command ended, start it again, judge what is there."""
    if failed.how not in ("ok", "refused"):
        trials.count("fault", fault, f"ended with {failed.how} {failed.status}: {failed.value}")
        return
    problems = []
    found = contents(folder)
    if failed.how == "refused" and not says_where(fault, failed.value):
        problems.append(f"the line does not say where: {failed.value}")
    problems += [f"{name}: {value}" for name, value in found.items() if value.startswith("damaged")]
    problems += [f"{name} was there before, and is gone" for name in before if name not in found]
    # report.md leaves out a picture that could not be written.
    written = [name for name in found if name.startswith("report/") and not name.endswith((".tmp", ".md"))]
    problems += [
        f"{name} is neither old nor new"
        for name in written
        if found[name] not in (before.get(name), expected.get(name))
    ]
    left = [name for name in found if name.endswith(".tmp")]
    if failed.how == "refused" and left and not (isinstance(fault, Failing) and fault.moment.action == "unlink"):
        problems.append(f"temporary files are left: {left}")
    again = in_process(folder, work, *args)
    if again.how != "ok":
        problems.append(f"started again, it ended with {again.how} {again.status}: {again.value}")
    elif different := difference(contents(folder), expected):
        problems.append(f"started again, it left {different}")
    trials.count(failed.how, fault, "; ".join(problems))


def says_where(fault, line: str) -> bool:
    """Whether a line names what failed, or, on a disk that stays full, any file."""
    if not isinstance(fault, Failing) or fault.number in LASTING:
        return any(name in line for name in ("runs", "report", "text_tokens", "tokenizers", "out"))
    return fault.moment.where in line or str(Path(fault.moment.where).parent) in line


def text_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "text.txt").write_text(sample_text(TEXT_BYTES), encoding="utf-8", newline="")
    return folder


def test_a_disk_that_is_full_when_a_state_is_written(tmp_path):
    """The quick representative of what follows."""
    base = write_toy(tmp_path / "base")
    _, expected = undisturbed(copied(base, tmp_path / "whole"), train)
    trials, fault = Trials("a full disk"), Failing(Moment("write", "runs/tests/state/.toy.state.tmp", 3), errno.ENOSPC)
    folder = copied(base, tmp_path / "t")
    failed = in_process(folder, train, fault=fault)
    assert failed.how == "refused", failed
    settled(trials, fault, folder, expected, train, before={}, failed=failed)
    trials.settle(1)


@pytest.mark.slow
def test_training_with_each_operation_failing(tmp_path):
    """From the start, and from a state that is there."""
    base = write_toy(tmp_path / "base", training_params__steps_to_train=10)
    early = copied(base, tmp_path / "early")
    assert in_process(early, train).value == 0
    trials = Trials("training")
    for start, most in ((base, 60), (early, 50)):
        write_toy(start)  # twenty steps from now on
        before = {name: value for name, value in contents(start).items() if name.endswith(".state")}
        events, expected = undisturbed(copied(start, tmp_path / "whole"), train)
        for fault in failures(aimed(events, most=most)):
            folder = copied(start, tmp_path / "t")
            failed = in_process(folder, train, fault=fault)
            settled(trials, fault, folder, expected, train, before=before, failed=failed)
    trials.settle(110)


@pytest.mark.slow
def test_tokenization_with_each_operation_failing(tmp_path):
    base = text_folder(tmp_path / "base")
    events, expected = undisturbed(copied(base, tmp_path / "whole"), tokenize)
    trials = Trials("tokenization")
    for fault in failures(aimed(events, most=40)):
        folder = copied(base, tmp_path / "t")
        failed = in_process(folder, tokenize, fault=fault)
        settled(trials, fault, folder, expected, tokenize, before=contents(base), failed=failed)
    trials.settle(40)


@pytest.mark.slow
def test_a_report_with_each_operation_failing(tmp_path):
    base = write_toy(tmp_path / "base")
    for backwards in (False, True):
        run = f"new_{'backward' if backwards else 'forward'}"
        write_toy(base, run, training_params__steps_to_train=4, training_params__backwards=backwards)
        undisturbed(base, train, run)
    before = contents(base)
    events, expected = undisturbed(copied(base, tmp_path / "whole"), measure, "new")
    trials = Trials("report")
    for fault in failures(aimed(events, most=30)):
        folder = copied(base, tmp_path / "t")
        failed = in_process(folder, measure, "new", fault=fault)
        settled(trials, fault, folder, expected, measure, "new", before=before, failed=failed)
    trials.settle(25)


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives an empty folder on a file system of its own, of so many bytes; or, with `grown`, lets that
    grow."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: int, grown: bool = False) -> Path:
        if os.path.ismount(folder) and not grown:
            subprocess.run(["umount", str(folder)], check=True)
        options = f"{'remount,' if grown else ''}size={size}"
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        ).returncode:
            pytest.skip("needs the right to mount a file system")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def size_of(folder: Path) -> int:
    """Bytes that a folder takes, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "tokenization"])
def test_on_disks_from_too_small_to_just_enough(what, tmp_path, small_disk):
    work = train if what == "training" else tokenize
    base = write_toy(tmp_path / "base") if what == "training" else text_folder(tmp_path / "base")
    whole = copied(base, tmp_path / "whole")
    _, expected = undisturbed(whole, work)
    least, most = size_of(base), size_of(whole)
    most += (
        max(path.stat().st_size for path in whole.rglob("*")) + 100_000
    )  # while a file is replaced it is there twice
    trials, sizes = Trials(f"{what} on small disks"), 16 if what == "training" else 10
    for number in range(sizes):
        size = least + 20_000 + (most - least) * number // (sizes - 1)
        folder = small_disk(size)
        shutil.copytree(base, folder, dirs_exist_ok=True)
        failed = in_process(folder, work)
        full = f"a disk of {size:,} bytes"
        small_disk(4 * most, grown=True)
        settled(trials, full, folder, expected, work, before=contents(base), failed=failed)
    assert trials.counts["ok"] and trials.counts["refused"], trials.counts
    trials.settle(sizes)
