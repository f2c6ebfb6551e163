"""Checkpoints of the paper's authors' code as states of ours, read without running any of it.

Their Trainer (torchenhanced) saves one dictionary a run: `model_state` by their names of parameters, `model_name` and
`model_config`, what the run was asked for in `run_config` ("train" and "opti" are two sections of their config file),
`steps_done` and `samples`. Their models compute what ours compute, GELU's exact form included (`model_params.gelu`), so
a state is its tensors under other names.

Such a state does not say on which data it was trained beyond a path on their machines, nor the seed of its weights;
and their held-out windows were drawn from the whole text, so that what is held out here was mostly trained on there.
`UNKNOWN` stands for the fingerprint of the data, `NOTES` for what a report must tell.
"""

import re
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field

from modules.config import parse_config
from modules.system.errors import UserError
from modules.system.schema import Schema, checked

KEYS = {"model_state", "model_name", "model_config"}  # by which such a state is known
ORIGIN = "the authors' code (torchenhanced)"
UNKNOWN = "not recorded"
NOTES = (
    f"a state of {ORIGIN}, which records neither the data's fingerprint nor the seed: the text is the one that was "
    "given, and initial weights were not shared between directions",
    "its held-out windows were drawn from the whole text: those evaluated here were mostly trained on, in each "
    "direction alike, unless the text given is another one",
)
MODELS = {"MinGPT": "gpt", "MinGRU": "gru", "MinLSTM": "lstm"}
BUFFERS = re.compile(r"(.*\.)?(_devtens|cant_attend)|transformer\.h\.\d+\.attn\.bias")  # no weights: masks, a device
# Ours by theirs, in order: a part of a name that begins at its start or behind a dot.
NAMES = {
    "gpt": {
        "transformer.token_embedder": "embedding",
        "transformer.position_embedder": "position",
        "transformer.ln_f": "norm",
        "transformer.h": "blocks",
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "attn.attn.in_proj_weight": "attention.query_key_value.weight",
        "attn.attn.in_proj_bias": "attention.query_key_value.bias",
        "attn.attn.out_proj": "attention.out",
        "attn.c_attn": "attention.query_key_value",  # of their first version
        "attn.c_proj": "attention.out",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.out",
        "lm_head": "head",
    },
    "gru": {"token_embedder": "embedding", "gru": "rnn", "ln_f": "norm", "lm_head": "head"},
    "lstm": {"token_embedder": "embedding", "lstm": "rnn", "ln_f": "norm", "lm_head": "head"},
}


class RunConfig(Schema):
    """What their scripts record of a config file."""

    train: dict
    opti: dict


class AuthorsState(Schema):
    """What of their state is read."""

    model_config = ConfigDict(populate_by_name=True)

    model_state: Annotated[dict[str, torch.Tensor], Field(min_length=1)]
    model_name: str
    params: Annotated[dict, Field(alias="model_config")]
    run_config: RunConfig
    steps_done: int = Field(ge=0)
    samples: int = Field(0, ge=0)


def is_authors(state: object) -> bool:
    """Whether what a file of torch holds is a state of their code."""
    return isinstance(state, dict) and state.keys() >= KEYS


def as_ours(state: dict, source: Path) -> dict:
    """A state of theirs, read from `source`, as one of ours without an optimizer.

    Raises UserError where it is of a model that is none of ours, holds other tensors, or does not say in which order it
    reads.
    """
    what = f"{source}: a state of {ORIGIN}"
    theirs = checked(AuthorsState, state, what)
    if theirs.model_name not in MODELS:
        raise UserError(f"{what}: expected one of {', '.join(MODELS)}, found {theirs.model_name!r}")
    if not {"backwards", "permutation"} & theirs.run_config.train.keys():
        raise UserError(f"{what}: run_config.train has no backwards and no permutation: its order is not known")
    model = MODELS[theirs.model_name]
    params = {key: value for key, value in theirs.params.items() if key != "fast"}
    if params.get("embd_dropout") is None:
        params["embd_dropout"] = params.get("dropout")  # as their code does
    if model == "gpt":
        params["gelu"] = "exact"
    data = {
        "model": model,
        "model_params": params,
        "training_params": theirs.run_config.train,
        "optim_params": theirs.run_config.opti,
    }
    config = parse_config(data, source.stem, source=what)
    tokens = theirs.samples * config.model_params.context
    return {
        "model": {ours_of(name, model, what): tensor for name, tensor in weights_of(theirs).items()},
        "config": config.to_dict(),
        "run": source.stem,
        "step": theirs.steps_done,
        "tokens": tokens or theirs.steps_done * config.step_windows * config.model_params.context,
        "precision": "fp32",
        "validated": theirs.steps_done,
        "unlogged": torch.zeros(0),
        "dataset": {
            "fingerprint": UNKNOWN,
            "n_tokens": 0,
            "text_bytes": None,
            "vocab_size": config.model_params.vocab_size,
            "tokenizer_fingerprint": None,
        },
        "versions": {},
        "notes": list(NOTES),
    }


def weights_of(theirs: AuthorsState) -> dict[str, torch.Tensor]:
    """Their weights, without what torch's wrappers for several devices put before each name."""
    bare = {name.removeprefix("module."): tensor for name, tensor in theirs.model_state.items()}
    return {name: tensor for name, tensor in bare.items() if not BUFFERS.fullmatch(name)}


def ours_of(name: str, model: str, what: str) -> str:
    """Our name of a parameter of theirs. UserError where their models have no such one."""
    ours, parts = name, 0
    for theirs, replacement in NAMES[model].items():
        ours, found = re.subn(rf"(^|(?<=\.)){re.escape(theirs)}(?=\.|$)", replacement, ours)
        parts += found
    if not parts:
        raise UserError(f"{what}: {name!r} is no tensor of a {model.upper()} of theirs")
    return ours
