"""The models: GPT, GRU and LSTM, and one function that builds any of them from a seed.

A model of your own is a file beside theirs, with a subclass of LanguageModel, and a line in MODELS.
"""

import torch

from modules.models.gpt import GPT, GPTParams
from modules.models.language_model import LanguageModel
from modules.models.recurrent import GRU, LSTM, RecurrentParams

__all__ = [
    "GPT",
    "GRU",
    "LSTM",
    "MODELS",
    "GPTParams",
    "LanguageModel",
    "RecurrentParams",
    "build_model",
    "count_parameters",
]

MODELS: dict[str, type[LanguageModel]] = {"gpt": GPT, "gru": GRU, "lstm": LSTM}  # by the name in a config


def build_model(name: str, seed: int, **model_params) -> LanguageModel:
    """The model `name` of MODELS on the CPU, with weights that depend on the seed and the parameters alone.

    The program's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](**model_params)


def count_parameters(name: str, **model_params) -> int:
    """The parameters that `build_model` would make, without memory for them: every layer has as many as the second."""
    with torch.device("meta"):
        one, two = (
            sum(parameter.numel() for parameter in MODELS[name](**model_params | {"n_layers": n}).parameters())
            for n in (1, 2)
        )
    return one + (model_params["n_layers"] - 1) * (two - one)
