"""Absurd numbers for every key, all the way through a run: each is refused in one line, or trains."""

import time

import pytest
import torch

from modules.config import parse_config
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from modules.training.parallel import Processes
from modules.training.run import Request, run
from tests.test_config import ABSURD, changed
from tests.toy import config_dict, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))
RECURRENT = {"vocab_size": 64, "n_layers": 1, "embed_dim": 8, "desired_attn_length": 16}
SMALL = [
    0.5,
    2,
    3,
    1e-6,
    0.999,
    0.9999999,
    1e-38,
    1e-45,
    1e29,
    10**6,
    10**9,
    10**11,
    2**31 - 1,
    2**63 - 1,
]  # beside the absurd: what a config may hold


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "gru"])
def test_any_value_of_any_key_trains_or_is_refused(tmp_path, model):
    write_tokens(tmp_path / "toy.h5", n_tokens=3_000)
    base = config_dict(
        tmp_path,
        training_params__steps_to_train=2,
        training_params__save_every=2,
        training_params__valid_steps=1,
        training_params__step_log=1,
        training_params__batch_size=4,
    ) | {"model": model}
    if model != "gpt":
        base["model_params"] = RECURRENT
    sections = parse_config(base, "toy").to_dict()
    trained, refused, slowest = 0, 0, 0.0
    for key in [f"{section}.{key}" for section, keys in sections.items() if isinstance(keys, dict) for key in keys]:
        for value in ABSURD + SMALL:
            if key == "training_params.steps_to_train" and isinstance(value, int) and value > 3:
                continue  # these train, and for years
            start = time.monotonic()
            name = f"run{trained + refused}"
            try:
                config = parse_config(changed(base, key, value), name)
                if config.training_params.state_save_loc == base["training_params"]["state_save_loc"]:
                    trained += run(config, Request("p"), HERE) == 0
            except UserError as error:
                assert "\n" not in str(error), (key, value)
                refused += 1
            slowest = max(slowest, time.monotonic() - start)
    print(f"{model}: {trained} trained, {refused} refused, the slowest in {slowest:.1f} s")
    assert trained > 100 and refused > 300


def test_a_run_finds_data_and_states_behind_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    write_tokens(tmp_path / "toy.h5", n_tokens=3_000)
    config = parse_config(
        config_dict(
            tmp_path,
            training_params__steps_to_train=2,
            training_params__dataset_folder="$SOMEWHERE/toy.h5",
            training_params__state_save_loc="${SOMEWHERE}/runs",
        ),
        "toy",
    ).with_model("gpt")
    for _ in range(2):  # from the start, and from its state
        assert run(config, Request("p"), HERE) == 0
    state = load_state(tmp_path / "runs" / "p" / "state" / "toy.state")
    assert state["config"]["training_params"]["dataset_folder"] == "$SOMEWHERE/toy.h5"
