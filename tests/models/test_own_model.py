"""A model of one's own: a class and a line in MODELS, and a config trains it and is checked by its parameters."""

import json

import pytest
import torch
from pydantic import Field
from torch import nn

from modules.config import load_config, parse_config
from modules.fields import Context, Ids, Layers, ModelParams, Width
from modules.models import MODELS, LanguageModel
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from modules.training.dry_run import dry_run
from modules.training.loop import steps
from modules.training.parallel import Processes
from modules.training.run import Request, data_of, prepare, run
from tests.toy import PROJECT, config_dict, metrics_of, state_path, write_config

HERE = Processes(0, 1, torch.device("cpu"))


class MeansParams(ModelParams):
    vocab_size: Ids = Field(description="vocabulary size")
    n_layers: Layers = Field(description="number of layers")
    embed_dim: Width = Field(description="width")
    context_length: Context = Field(description="tokens in a window")

    @property
    def context(self) -> int:
        return self.context_length


class Means(LanguageModel):
    """Layers over the mean of all tokens so far."""

    Params = MeansParams

    def __init__(self, vocab_size: int, n_layers: int, embed_dim: int, context_length: int):
        super().__init__(vocab_size, embed_dim, context_length)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.Tanh()) for _ in range(n_layers))

    def parts(self) -> list[nn.Module]:
        return list(self.layers)

    def hidden(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embedding(tokens_BT).cumsum(1)
        for layer in self.layers:
            x_BTD = x_BTD + self.through(layer, x_BTD)
        return nn.functional.normalize(x_BTD, dim=-1) * x_BTD.shape[-1] ** 0.5


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "means", Means)
    write_config(tmp_path)
    data = config_dict(tmp_path) | {"model": "means"}
    data["model_params"] = {"vocab_size": 64, "n_layers": 2, "embed_dim": 32, "context_length": 16}
    (tmp_path / "own.json").write_text(json.dumps(data))
    return load_config(tmp_path / "own.json")


def test_a_config_trains_it_and_goes_on(config, tmp_path, capsys):
    dry_run(config, HERE)
    assert "means of" in capsys.readouterr().out
    assert run(config.with_training(steps_to_train=20), Request(PROJECT), HERE) == 0
    assert run(config, Request(PROJECT), HERE) == 0
    state = load_state(state_path(tmp_path, "own"))
    assert state["step"] == 40 and "layers.1.0.weight" in state["model"]
    valid = [entry["loss"] for entry in metrics_of(tmp_path, "own") if entry["split"] == "valid"]
    assert valid[-1] < valid[0]
    changed = config.to_dict()
    changed["model_params"]["n_layers"] = 3
    with pytest.raises(UserError, match=r"another run: model_params\.n_layers 2 there and 3 in the config"):
        run(parse_config(changed, "own"), Request(PROJECT), HERE)


def test_its_parts_can_be_computed_once_more_to_the_same_bits(config):
    states = []
    for checkpointed in (False, True):
        named = config.with_training(checkpoint_activations=checkpointed, steps_to_train=5).with_name(str(checkpointed))
        training = prepare(named, data_of(named, None, HERE), HERE)
        assert training.model.checkpoint_activations == checkpointed
        states.append(list(steps(training, 5)))
    assert torch.equal(torch.stack(states[0]), torch.stack(states[1]))


def test_its_parameters_are_checked_as_others_are(config):
    wrong = config.to_dict()
    wrong["model_params"]["contxt_length"] = wrong["model_params"].pop("context_length")
    with pytest.raises(UserError, match="nearest valid key: model_params.context_length"):
        parse_config(wrong, "own")
    wrong = config.to_dict()
    wrong["model_params"]["n_heads"] = 4
    with pytest.raises(UserError, match="only a GPT has it, and the other keys make this a MEANS"):
        parse_config(wrong, "own")
