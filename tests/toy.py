"""A small real setting for the tests: a token file that a model can learn from, a config, and the project's scripts as
processes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "tests"
VOCAB_SIZE = 64


def write_tokens(path: Path, n_tokens: int = 60_000, vocab_size: int = VOCAB_SIZE, seed: int = 0, **attributes) -> Path:
    """An .h5 of ours with a random chain: each token allows four next ones."""
    random = np.random.default_rng(seed)
    allowed = random.integers(1, vocab_size, (vocab_size, 4))
    choices = random.integers(0, 4, n_tokens)
    tokens = np.ones(n_tokens, dtype=np.uint16)
    for i in range(1, n_tokens):
        tokens[i] = allowed[tokens[i - 1], choices[i]]
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("tokens", data=tokens)
        dataset.attrs.update(
            {"vocab_size": vocab_size, "bos_id": 0, "text_bytes": 2 * n_tokens, "tokenizer_fingerprint": "f" * 64}
            | attributes
        )
    return path


def config_dict(folder: Path, **changes) -> dict:
    """A config that trains in seconds; `changes` are dotted keys with __ for the dot, e.g. training_params__seed=1."""
    config = {
        "model_params": {
            "vocab_size": VOCAB_SIZE,
            "n_layers": 2,
            "n_heads": 2,
            "embed_dim": 32,
            "attn_length": 16,
            "dropout": 0.1,
        },
        "training_params": {
            "dataset_folder": str(folder / "toy.h5"),
            "batch_size": 16,
            "aggregate": 1,
            "backwards": False,
            "steps_to_train": 40,
            "save_every": 10,
            "backup_every": 20,
            "step_log": 5,
            "valid_steps": 2,
            "state_save_loc": str(folder / "runs"),
        },
        "optim_params": {"lr": 3e-3, "warmup_steps": 5, "oscil_steps": 35, "lr_min": 3e-4},
    }
    config = copy.deepcopy(config)
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def write_config(folder: Path, name: str = "toy", **changes) -> Path:
    """`config_dict` as a file; the token file is made if it is not there."""
    if not (folder / "toy.h5").exists():
        write_tokens(folder / "toy.h5")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config_dict(folder, **changes)))
    return path


def command(script: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def run_script(script: str, *arguments, timeout: int = 180, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does."""
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **kwargs
    )


def start_script(script: str, *arguments, **environment) -> subprocess.Popen:
    """Start a script of the project and return at once."""
    return subprocess.Popen(
        command(script, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )


def state_path(folder: Path, run: str = "toy") -> Path:
    return folder / "runs" / PROJECT / "state" / f"{run}.state"


def metrics_of(folder: Path, run: str = "toy") -> list[dict]:
    return [
        json.loads(line) for line in (folder / "runs" / PROJECT / "metrics" / f"{run}.jsonl").read_text().splitlines()
    ]
