"""States of small models of a text, in several orders, with their tokenizer: made once for the tests of this folder."""

import copy
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch

from modules.config import load_config, parse_config
from modules.models import build_model
from modules.tokenizer import Tokenizer
from modules.training.checkpoint import load_state, save_state
from modules.training.parallel import Processes
from modules.training.run import Request, run
from tests.tok_texts import sample_text, trained
from tests.toy import state_path, write_config

CONTEXT = 16
TEXT = sample_text(40_000)


@dataclass(frozen=True)
class Made:
    """A folder with `data.h5`, the tokenizer's folder, and states by name."""

    folder: Path
    toki: Tokenizer
    states: dict[str, Path]


def save(folder: Path, name: str, trained_state: dict, order="forward", model="gpt", **changes) -> Path:
    """`trained_state` with another config, and weights of that, random and large enough to differ from a guess."""
    data = copy.deepcopy(trained_state["config"])
    params = {"vocab_size": data["model_params"]["vocab_size"], "n_layers": 2, "embed_dim": 16}
    params |= {"n_heads": 2, "attn_length": CONTEXT} if model == "gpt" else {"desired_attn_length": CONTEXT}
    data |= {"model": model, "model_params": params | changes}
    data["training_params"] |= {"order": order, "backwards": None}
    config = parse_config(data, name)
    weights = {
        key: 3 * tensor for key, tensor in build_model(model, len(name), **config.model_arguments).state_dict().items()
    }
    path = folder / f"{name}.state"
    save_state(trained_state | {"run": name, "config": config.to_dict(), "model": weights, "optimizer": None}, path)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("usage")
    toki = trained(folder / "tokenizers" / "small", [TEXT], 400)
    ids = toki.encode(TEXT)
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("tokens", data=np.array(ids, dtype=np.uint16)).attrs.update(
            {
                "vocab_size": toki.vocab_size,
                "tokenizer_fingerprint": toki.fingerprint,
                "bos_id": toki.bos_id,
                "text_bytes": len(TEXT.encode("utf-8")),
            }
        )
    params = {"vocab_size": toki.vocab_size, "n_layers": 1, "n_heads": 1, "embed_dim": 2, "attn_length": CONTEXT}
    write_config(folder, "first", training_params__dataset_folder=str(folder / "data.h5"))
    first = json.loads((folder / "first.json").read_text()) | {"model_params": params}
    (folder / "first.json").write_text(json.dumps(first))
    config = load_config(folder / "first.json").with_training(steps_to_train=1, precision="fp32")
    assert run(config.with_model("gpt"), Request("tests"), Processes(0, 1, torch.device("cpu"))) == 0
    state = load_state(state_path(folder, "first"))
    kinds = {
        "forward": {},
        "backward": {"order": "backward"},
        "both": {"order": "both"},
        "even_odd": {"order": "even_odd"},
        "fresh": {"order": "fresh_random"},
        "lstm": {"model": "lstm", "order": "backward"},
        "rope": {"position": "rope", "n_layers": 1},
        "listed": {"order": [1, 0, *range(2, CONTEXT)]},
    }
    return Made(folder, toki, {name: save(folder, name, state, **kind) for name, kind in kinds.items()})


@dataclass(frozen=True)
class Told:
    """What a command left: its exit status and its output."""

    returncode: int
    stdout: str
    stderr: str


class Input(io.TextIOWrapper):
    """A standard input that holds these bytes."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="utf-8")


def told_by(main, *arguments, stdin: bytes = b"") -> Told:
    """A script's main with these arguments, in this process: starting another one takes seconds."""
    with (
        patch.object(sys, "argv", ["script.py", *map(str, arguments)]),
        patch.object(sys, "stdin", Input(stdin)),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        try:
            status = main() or 0
        except SystemExit as ended:
            status = ended.code
    return Told(status, out.getvalue(), err.getvalue())
