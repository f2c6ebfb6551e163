"""GRU and LSTM: torch's recurrent layers between an embedding and a vocabulary head.

The two differ in the cell alone. A layer norm before the head gives it inputs of unit
variance, as in GPT, so that the three start from the same loss.
"""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from modules.fields import Context, Ids, Layers, ModelParams, Probability, Width
from modules.kernels.dropout import Dropout
from modules.models.language_model import LanguageModel


class RecurrentParams(ModelParams):
    """The `model_params` of a GRU or LSTM in a config."""

    vocab_size: Ids = Field(description="vocabulary size")
    n_layers: Layers = Field(description="number of recurrent layers")
    embed_dim: Width = Field(description="width of the embeddings and of the hidden state")
    desired_attn_length: Context = Field(description="context: tokens in a window")
    dropout: Probability = Field(0.0, description="dropout between the layers")
    embd_dropout: Probability = Field(0.0, description="dropout of the embeddings")

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.desired_attn_length


class Recurrent(LanguageModel):
    """A recurrent model built from the `model_params` of a config.

    desired_attn_length: tokens of a window; the model itself could read on for ever.
    dropout: between layers; embd_dropout: of the embeddings (None is 0).
    """

    Params = RecurrentParams
    layers: type[nn.GRU] | type[nn.LSTM]

    def __init__(
        self,
        vocab_size: int,
        n_layers: int,
        embed_dim: int,
        desired_attn_length: int,
        dropout: float = 0.0,
        embd_dropout: float | None = None,
        start_tokens: int = 0,
    ):
        super().__init__(vocab_size, embed_dim, desired_attn_length, start_tokens)
        self.dropout = Dropout(embd_dropout or 0.0)
        # torch warns about dropout with a single layer: there is no place between layers for it.
        self.rnn = self.layers(
            embed_dim, embed_dim, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0
        )
        self.norm = nn.LayerNorm(embed_dim)

    def start_cache(self) -> "RecurrentCache":
        return RecurrentCache()

    def hidden(self, tokens_BT: torch.Tensor, cache: "RecurrentCache | None" = None) -> torch.Tensor:
        """Hidden vectors [B, T, D] for tokens [B, T]."""
        x_BTD, state = self.rnn(self.dropout(self.embedding(tokens_BT)), None if cache is None else cache.state)
        if cache is not None:
            cache.state = state
        return self.norm(x_BTD)


class RecurrentCache:
    """The hidden state after the tokens that have been read, as torch's layers have it; None before the first."""

    state: Any = None


class GRU(Recurrent):
    """Gated recurrent units (torch.nn.GRU)."""

    layers = nn.GRU


class LSTM(Recurrent):
    """Long short-term memory (torch.nn.LSTM)."""

    layers = nn.LSTM
