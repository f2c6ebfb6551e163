"""No process of ours imports from the folder in which the user starts it, whatever the files there are called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tok_texts import sample_text
from tests.toy import ROOT, write_config

THIRD_PARTY = {
    "numpy",
    "torch",
    "h5py",
    "tokenizers",
    "gigatoken",
    "regex",
    "tqdm",
    "wandb",
    "matplotlib",
    "pydantic",
    "zstandard",
    "filelock",
    "modules",
}


@pytest.fixture
def trap(tmp_path) -> Path:
    """A folder with a file of every name that Python or we could import; each writes down that it was run."""
    for name in sys.stdlib_module_names | THIRD_PARTY:
        (tmp_path / f"{name}.py").write_text(
            f"import posix\nfile = {str(tmp_path / 'sprung')!r}\n"
            "fd = posix.open(file, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND)\n"
            f"posix.write(fd, b'{name} ')\nraise SystemExit('{name}.py of the working folder was imported')\n"
        )
    (tmp_path / "posix.py").unlink()
    return tmp_path


def run(trap: Path, script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=trap,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not (trap / "sprung").exists(), (trap / "sprung").read_text()
    assert done.returncode == 0, done.stderr


def test_the_trap_springs(trap):
    assert subprocess.run(
        [sys.executable, "-c", "import random"], cwd=trap, capture_output=True, check=False
    ).returncode
    assert (trap / "sprung").read_text() == "random "


def test_tokenization(trap):
    (trap / "t.txt").write_text(sample_text(50_000))
    run(
        trap,
        "tokenize_to_h5.py",
        "--txt_path",
        "t.txt",
        "--out_h5_folder",
        "out",
        "--tokenizer_folder",
        ".",
        "--tokenizer_name",
        "tok",
        "--vocab_size",
        "300",
        "--num_workers",
        "2",
    )
    assert (trap / "out" / "t.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, arguments",
    [("train_script.py", []), ("train_parallel.py", ["--nproc", "2"]), ("measure_arrow.py", ["--jobs", "2"])],
)
def test_training(trap, script, arguments):
    write_config(trap, "toy", training_params__steps_to_train=4, training_params__save_every=4)
    run(trap, script, "toy.json", "-d", "cpu", *arguments)


@pytest.mark.slow
def test_the_compiler(trap):
    write_config(trap, "toy", training_params__steps_to_train=2, training_params__compile=True)
    run(trap, "train_script.py", "toy.json", "-d", "cpu")
