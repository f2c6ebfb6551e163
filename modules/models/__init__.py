"""The models: GPT, GRU and LSTM, and one function that builds any of them from a seed."""

import torch

from modules.models.gpt import GPT
from modules.models.language_model import LanguageModel
from modules.models.recurrent import GRU, LSTM

__all__ = ["GPT", "GRU", "LSTM", "LanguageModel", "build_model", "count_parameters"]

MODELS = {"gpt": GPT, "gru": GRU, "lstm": LSTM}


def build_model(name: str, seed: int, **model_params) -> LanguageModel:
    """The model `name` ("gpt", "gru", "lstm") on the CPU, with weights that depend on the seed and the parameters
    alone.

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
