"""Whole runs of the scripts whose output goes nowhere: the work is done, its result is on the disk, and the exit status
says so."""

import os
import subprocess

import pytest

from modules.training.checkpoint import load_state
from tests.toy import PROJECT, command, metrics_of, state_path, write_config

GREEK = "ἀρχή"


def run_redirected(redirection, *arguments, **environment):
    """Run a script of the project through a shell that redirects it."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", *command(*arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
    )


@pytest.mark.parametrize(
    "redirection, environment",
    [
        (">&- 2>&-", {}),
        (">/dev/full 2>/dev/full", {}),
        ("2>&1 | head -1", {"PYTHONIOENCODING": "cp1252:strict"}),
        ("2>/dev/null", {"PYTHONIOENCODING": "ascii:strict", "MPLBACKEND": "nonsense", "TQDM_MININTERVAL": "nonsense"}),
    ],
)
def test_training_ends_well_with_its_state_saved(tmp_path, redirection, environment):
    config = write_config(tmp_path, GREEK, training_params__steps_to_train=20)
    done = run_redirected(redirection, "train_script.py", config, "-d", "cpu", "-p", PROJECT, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_state(state_path(tmp_path, GREEK))["step"] == 20
    assert [entry["step"] for entry in metrics_of(tmp_path, GREEK) if entry["split"] == "valid"] == [10, 20]
    assert "Exception" not in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("redirection", ["&>/dev/full", "2>&1 | true"])
def test_tokenizing_ends_well_with_its_data_written(tmp_path, redirection):
    (tmp_path / f"{GREEK}.txt").write_text(f"Ἐν ἀρχῇ ἦν ὁ λόγος, {GREEK}.\n" * 200, encoding="utf-8")
    done = run_redirected(
        redirection,
        "tokenize_to_h5.py",
        "--txt_path",
        tmp_path / f"{GREEK}.txt",
        "--out_h5_folder",
        tmp_path,
        "--tokenizer_folder",
        tmp_path,
        "--tokenizer_name",
        "greek",
        "--vocab_size",
        300,
        "--num_workers",
        1,
        PYTHONIOENCODING="ascii:strict",
        TQDM_DISABLE="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / f"{GREEK}.h5").stat().st_size > 0
    assert "Exception" not in done.stdout + done.stderr
