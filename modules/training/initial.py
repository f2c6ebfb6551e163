"""Weights that a run begins with, where they are not the seed's: those of a state, or of a published GPT-2
(`training_params.init_from`).

Such a run is a new one: step 0, a fresh optimizer, its own seed for the order of windows and dropout. With which
weights it began belongs to its identity, by their fingerprint and not by their path: a file that was moved, or saved in
another format, is the same.

Runs of several orders may be compared where they began with the same weights; or, where the path names the order
(`{order}`), with states that might themselves be compared.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.config import Config, parse_config
from modules.data.token_file import TokenFile
from modules.exchange.gpt2 import read_gpt2
from modules.models import GPTParams, LanguageModel, build_model
from modules.system.console import warn_once
from modules.system.errors import UserError
from modules.tokenizer import load
from modules.training.checkpoint import InitialWeights, check_facts, check_tensors, load_state
from modules.training.sharded import FACTS, load_sharded

SHOWN_TENSORS = 6


@dataclass(frozen=True)
class Initial:
    """Weights that fit a model, by our names. facts: what a state keeps of them. weights: None where a run goes on from
    its state, which has others by now. tokenizer: the fingerprint of theirs, where it is known."""

    facts: InitialWeights
    weights: dict[str, torch.Tensor] | None
    tokenizer: str | None = None

    def put_into(self, model: LanguageModel) -> None:
        """Give `model` these weights; without any it keeps its own."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def warn_of_other_tokens(self, token_file: TokenFile) -> None:
        """Say where the data's tokenizer is not that of the weights: then an id means another token to them."""
        if self.tokenizer and token_file.tokenizer_fingerprint not in (None, self.tokenizer):
            warn_once(
                f"{self.facts.path}: has a tokenizer that is not that of {token_file.path}: ids mean other tokens"
            )


def initial_of(config: Config, found: dict | None = None) -> Initial | None:
    """The weights that the run of `config` begins with; None where they are the seed's. `found`: the state that it goes
    on from.

    Raises UserError where they cannot be read, or do not fit the model.
    """
    if config.init_path is None:
        return None
    path = Path(config.init_path)
    recorded = found.get("initial_weights") if found else None
    if recorded and recorded["path"] == str(path) and not path.exists():
        return Initial(InitialWeights.model_validate(recorded), None)
    weights, different, family, tokenizer = read(path, config)
    with torch.device("meta"):
        model = build_model(config.trained_model, 0, **config.model_arguments)
    check_fit(weights, {name: tensor.shape for name, tensor in model.state_dict().items()}, different, path)
    if "{order}" not in (config.training_params.init_from or ""):
        family = None
    facts = InitialWeights(path=str(path), fingerprint=fingerprint_of(weights), family=family)
    return Initial(facts, None if found else weights, tokenizer)


def read(path: Path, config: Config) -> tuple[dict[str, torch.Tensor], list[str], str | None, str | None]:
    """The weights at `path`; in what they are of another model than `config` trains; the family of a state (see
    `family_of`); and the fingerprint of their tokenizer, where it is there. UserError where they cannot be read."""
    if path.is_dir() and not (path / FACTS).exists():
        if not isinstance(config.model_params, GPTParams) or config.trained_model != "gpt":
            raise UserError(f"{path}: a folder can be a GPT's alone, and the config trains a {config.trained_model}")
        weights, different = read_gpt2(path, config.model_params)
        tokenizer = None
        with contextlib.suppress(UserError):  # none there, or of another kind
            tokenizer = load(path)[0].fingerprint
        return weights, different, None, tokenizer
    if not path.exists():
        raise UserError(f"{path}: no such state or folder (training_params.init_from of {config.name})")
    state = state_at(path)
    there = parse_config(state["config"], state["run"], source=str(path))
    mine, theirs = computes(config), computes(there)
    different = [f"{key} {theirs.get(key)} there and {mine[key]} here" for key in mine if mine[key] != theirs.get(key)]
    return state["model"], different, family_of(state, there), state["dataset"].get("tokenizer_fingerprint")


def state_at(path: Path) -> dict:
    """The state at `path`, a file or the folder of a sharded one. UserError as in `load_state`."""
    if not path.is_dir():
        return load_state(path)
    if not (path / FACTS).exists():
        raise UserError(f"{path}: expected a .state, or the folder of a sharded one, found a folder without {FACTS}")
    return check_facts(load_sharded(path), str(path))


def computes(config: Config) -> dict[str, object]:
    """What decides what a model computes from its weights, dropout aside."""
    params = config.model_params.model_dump()
    return {"model": config.trained_model} | {key: params[key] for key in params if "dropout" not in key}


def check_fit(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], different: list[str], path: Path
) -> None:
    """UserError, naming what differs, unless `weights` are finite numbers in just these shapes and nothing is
    `different`."""
    found = {name: tensor.shape for name, tensor in weights.items()}
    wrong = [
        f"{name} {in_words(found.get(name))} there and {in_words(shapes.get(name))} here"
        for name in (*shapes, *sorted(found.keys() - shapes.keys()))
        if found.get(name) != shapes.get(name)
    ]
    if different or wrong:
        more = f"; and {len(wrong) - SHOWN_TENSORS} more tensors" if len(wrong) > SHOWN_TENSORS else ""
        raise UserError(
            f"{path}: does not fit the config's model: {'; '.join([*different, *wrong[:SHOWN_TENSORS]])}{more}"
        )
    check_tensors(dict(weights), dict(shapes), str(path))


def in_words(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def fingerprint_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Hex digest of weights by our names, the same from whichever file they came."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].float().contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def family_of(state: dict, config: Config) -> str:
    """What a state shares with those of other orders and seeds: a digest of what it was trained as and on, and for how
    long."""
    identity = config.identity()
    del identity["training_params.order"], identity["training_params.seed"]
    dataset = state["dataset"]
    facts = identity | {
        "data": [dataset["fingerprint"], dataset.get("tokenizer_fingerprint")],
        "steps": state["step"],
        "held-out tokens": state["held_out_tokens"],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
