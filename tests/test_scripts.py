"""The training scripts as their users meet them: mistakes in one line, W&B without questions, torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from modules.training.checkpoint import load_state
from tests.processes import children_of
from tests.toy import PROJECT, ROOT, metrics_of, run_script, state_path, write_config


def refused(script, *arguments, status=1):
    """Run a script that must end with one line on stderr; that line."""
    done = run_script(script, *arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def test_help_explains_every_argument():
    done = run_script("train_parallel.py", "--help")
    assert done.returncode == 0
    for word in (
        "file_location",
        "-d DEVICE",
        "--device",
        "-t TOKENIZER_PATH",
        "-p PROJECT_NAME",
        "BackPerplexityResilient",
        "-s, --no_step_pickup",
        "--run_name",
        "--cooldown",
        "--dry_run",
        "--nproc",
    ):
        assert word in done.stdout


def test_a_config_that_is_not_json_is_refused_with_line_and_column(tmp_path):
    (tmp_path / "bad.json").write_text('{\n  "model_params": {,}\n}')
    assert "bad.json: not JSON: line 2 column 20" in refused("train_script.py", tmp_path / "bad.json")


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path):
    assert (
        "training_params.batchsize"
        in (line := refused("train_parallel.py", write_config(tmp_path, training_params__batchsize=3)))
        and "batch_size" in line
    )


def test_a_config_of_another_model_is_refused(tmp_path):
    assert "gru" in refused("train_gru.py", write_config(tmp_path))


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    assert "no device 'cuda:99' here; there is " in refused("train_script.py", write_config(tmp_path), "-d", "cuda:99")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = refused(
        "train_script.py", write_config(tmp_path, training_params__state_save_loc=str(tmp_path / "file")), "-d", "cpu"
    )
    assert str(tmp_path / "file") in line


def test_too_little_data_says_how_much_is_needed(tmp_path):
    line = refused(
        "train_script.py", write_config(tmp_path, training_params__valid_steps=1000), "-d", "cpu", "-p", PROJECT
    )
    assert "holds 60,000 tokens, but this config needs at least 256,136" in line  # 1000 * 16 * 16 + 16 + 15 * 8


def test_a_tokenizer_that_did_not_make_the_data_is_refused(tmp_path):
    line = refused(
        "train_script.py",
        write_config(tmp_path, model_params__vocab_size=60_000),
        "-d",
        "cpu",
        "-t",
        "modules/tokenizers/en_tokenizer",
    )
    assert "not the tokenizer of" in line and "ffffffffffff" in line


def test_a_batch_too_small_for_the_processes_is_refused_once(tmp_path):
    line = refused(
        "train_parallel.py", write_config(tmp_path, training_params__batch_size=1), "--nproc", 2, "-d", "cpu"
    )
    assert "batch_size: expected at least the number of processes, 2, found 1" in line


def test_wandb_is_offline_where_nobody_is_logged_in_and_asks_nothing(tmp_path):
    config = write_config(tmp_path, training_params__steps_to_train=10)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {
        "HOME": str(tmp_path)
    }
    done = run_script("train_script.py", config, "-d", "cpu", "-p", PROJECT, env=environment)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs" / PROJECT / "wandb").glob("offline-run-*/*.wandb"))


def test_a_wandb_that_fails_is_a_warning_and_not_the_end(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise RuntimeError('this W&B is broken')")
    config = write_config(tmp_path, training_params__steps_to_train=10)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "broken"), "WANDB_MODE": "offline"}
    done = run_script("train_script.py", config, "-d", "cpu", "-p", PROJECT, env=environment)
    assert done.returncode == 0 and re.search(
        r"warning: Weights & Biases does not work \(.*toy.jsonl\): this W&B is broken", done.stderr
    )
    assert metrics_of(tmp_path)[-1]["step"] == 10


def test_torchrun_trains_too(tmp_path):
    config = write_config(tmp_path, training_params__steps_to_train=10)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "train_parallel.py"),
        str(config),
        "-d",
        "cpu",
        "-p",
        PROJECT,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert load_state(state_path(tmp_path))["step"] == 10


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_sharded_export_and_a_plain_state_hold_the_same(tmp_path, kind):
    """The state that users open is the same kind of file, however it was trained."""
    config = write_config(
        tmp_path, training_params__steps_to_train=10, training_params__parallel=kind, model_params__dropout=0.0
    )
    done = run_script("train_parallel.py", config, "--nproc", 1 if kind == "ddp" else 2, "-d", "cpu", "-p", PROJECT)
    assert done.returncode == 0, done.stderr
    state = load_state(state_path(tmp_path))
    assert state["model"]["embedding.weight"].shape == (64, 32)
    assert set(state["optimizer"]["state"]) == set(state["model"])
    assert json.dumps(state["config"])  # plain data


@pytest.mark.slow
def test_torchrun_restarts_a_run_from_its_last_state_after_a_process_died(tmp_path):
    config = write_config(
        tmp_path, training_params__steps_to_train=1500, training_params__save_every=50, training_params__valid_steps=1
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        str(ROOT / "train_parallel.py"),
        str(config),
        "-d",
        "cpu",
        "-p",
        PROJECT,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    while process.poll() is None and not state_path(tmp_path).exists():
        time.sleep(0.05)
    os.kill(children_of(process.pid, at_least=2)[-1], signal.SIGKILL)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    starts = [int(step.replace(",", "")) for step in re.findall(r"reading forward, steps ([\d,]+) to", output)]
    assert starts[0] == 0 and starts[1] > 0, "begun once, gone on once"
    assert load_state(state_path(tmp_path))["step"] == 1500
