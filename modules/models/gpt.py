"""GPT: the architecture of GPT-2 (pre-norm, learned positions, GELU by tanh), with an untied head.

With the same weights it gives the logits of `transformers`' GPT2LMHeadModel.

A position is that of a token among those read: the first that is read is at 0 in every order, so that all orders are
the same task for the model. (With learned positions, which start at random, this is the model that is told places in
the text: the same table with its rows in another order.) Where each window has an order of its own, reading along tells
nothing of places, and two tables do: one of the place of the token that is read, one of the place of the token to
predict, as in sigma-GPT (A. Pannatier et al., arXiv 2404.09562).

Shapes: B batch, T time, D width.
"""

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from modules.fields import Context, Ids, Layers, ModelParams, Probability, Width, up_to
from modules.kernels.attention import KeysAndValues, attention_to_all_so_far, causal_attention
from modules.kernels.dropout import Dropout
from modules.kernels.linear import Linear
from modules.kernels.rotary import rotary_turns, turned
from modules.models.language_model import LanguageModel


class GPTParams(ModelParams):
    """A GPT's `model_params` in a config."""

    vocab_size: Ids = Field(description="vocabulary size")
    n_layers: Layers = Field(description="number of transformer blocks")
    n_heads: Width = Field(description="number of attention heads")
    embed_dim: Width = Field(description="width of the residual stream")
    attn_length: Context = Field(description="context: tokens in a window")
    mlp_ratio: Annotated[float, up_to(1000, "the usual is 4")] = Field(
        4.0, gt=0, description="hidden width of the MLP over `embed_dim`"
    )
    dropout: Probability = Field(0.1, description="dropout inside the blocks")
    embd_dropout: Probability = Field(0.0, description="dropout of the embeddings")
    position: Literal["learned", "rope", "none"] = Field(
        "learned", description="positions: learned embeddings, rotary ones, or none but causal attention"
    )
    gelu: Literal["tanh", "exact"] = Field(
        "tanh", description="the MLP's GELU: GPT-2's approximation by tanh, or exact as in the authors' models"
    )

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.attn_length

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Self:
        if self.embed_dim % self.n_heads:
            raise ValueError(f"expected embed_dim divisible by n_heads, found {self.embed_dim} and {self.n_heads}")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"expected embed_dim * mlp_ratio of at least 1, found {self.embed_dim} * {self.mlp_ratio}")
        if self.position == "rope" and self.embed_dim // self.n_heads % 2:
            raise ValueError(
                "expected heads of even width for rotary positions, found "
                f"embed_dim / n_heads = {self.embed_dim // self.n_heads}"
            )
        return self


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, embed_dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.query_key_value = Linear(embed_dim, 3 * embed_dim)
        self.out = Linear(embed_dim, embed_dim)

    def forward(
        self, x_BTD: torch.Tensor, turns_TC2: torch.Tensor | None = None, kept: KeysAndValues | None = None
    ) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        qkv_BTE = self.query_key_value(x_BTD)
        if turns_TC2 is not None:
            qkv_BTE = turned(qkv_BTE, self.n_heads, turns_TC2)
        if kept is not None:
            return self.out(attention_to_all_so_far(qkv_BTE, self.n_heads, kept))
        return self.out(causal_attention(qkv_BTE, self.n_heads, dropout))


class MLP(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, embed_dim: int, mlp_ratio: float, gelu: str):
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.up = Linear(embed_dim, int(mlp_ratio * embed_dim))
        self.out = Linear(int(mlp_ratio * embed_dim), embed_dim)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.up(x_BTD), approximate=self.approximate))


class Block(nn.Module):
    """A transformer block: each half reads a normalised x and adds to x. turns_TC2: of rotary positions. kept: of the
    tokens before x, in generation."""

    def __init__(self, embed_dim: int, n_heads: int, mlp_ratio: float, dropout: float, gelu: str):
        super().__init__()
        self.norm_1 = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, n_heads, dropout)
        self.norm_2 = nn.LayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, mlp_ratio, gelu)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: torch.Tensor, turns_TC2: torch.Tensor | None = None, kept: KeysAndValues | None = None
    ) -> torch.Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_1(x_BTD), turns_TC2, kept))
        x_BTD = x_BTD + self.dropout(self.mlp(self.norm_2(x_BTD)))
        return x_BTD


class GPTCache:
    """Of the tokens that a GPT has read: keys and values of each block, and the place of the token after them, where
    places are told."""

    def __init__(self, n_layers: int, context: int):
        self.of_blocks = [KeysAndValues(context) for _ in range(n_layers)]
        self.next_B1: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many have been read."""
        return self.of_blocks[0].tokens


class GPT(LanguageModel):
    """A GPT built from the `model_params` of a config.

    attn_length: tokens of a window, BOS included: the longest input.
    embd_dropout: dropout of the embeddings; None is 0.
    position: how it knows how far apart tokens are: "learned" embeddings, "rope" (rotary embeddings), or "none", from
        what causal attention shows alone.
    gelu: of the MLP, "tanh" or "exact". (In a small trained model logits differ by 0.0004 in the mean, 0.014 at most.)
    start_tokens: ids behind the vocabulary, one for each order of a model of several.
    told_places: each window has an order of its own; inputs are [B, T, 2] and `position` is "learned".
    checkpoint_activations: recompute each block in the backward pass: about a third more
        arithmetic for memory that no longer grows with n_layers x attn_length.
    """

    Params = GPTParams
    compile_pays = True

    def __init__(
        self,
        vocab_size: int,
        n_layers: int,
        n_heads: int,
        embed_dim: int,
        attn_length: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        embd_dropout: float | None = None,
        checkpoint_activations: bool = False,
        position: str = "learned",
        gelu: str = "tanh",
        start_tokens: int = 0,
        told_places: bool = False,
    ):
        super().__init__(vocab_size, embed_dim, attn_length, start_tokens)
        self.checkpoint_activations = checkpoint_activations
        # One row more than there are places, for BOS.
        self.position = nn.Embedding(attn_length + told_places, embed_dim) if position == "learned" else None
        self.next_position = nn.Embedding(attn_length, embed_dim) if told_places else None
        turns_TC2 = rotary_turns(attn_length, embed_dim // n_heads) if position == "rope" else None
        self.register_buffer("turns_TC2", turns_TC2, persistent=False)
        self.dropout = Dropout(embd_dropout or 0.0)
        blocks = [Block(embed_dim, n_heads, mlp_ratio, dropout, gelu) for _ in range(n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dim)

        for table in (self.position, self.next_position):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        for block in blocks:
            for linear in (block.attention.query_key_value, block.mlp.up):
                nn.init.normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            for linear in (block.attention.out, block.mlp.out):  # what adds to x: smaller the more blocks add (GPT-2)
                nn.init.normal_(linear.weight, std=0.02 / (2 * n_layers) ** 0.5)
                nn.init.zeros_(linear.bias)

    def parts(self) -> list[nn.Module]:
        return list(self.blocks)

    def start_cache(self) -> GPTCache:
        return GPTCache(len(self.blocks), self.context)

    def hidden(self, tokens_BT: torch.Tensor, cache: GPTCache | None = None) -> torch.Tensor:
        """Hidden vectors [B, T, D] for tokens [B, T], or [B, T, 2] with places, T up to `attn_length`, those in the
        cache counted."""
        start = 0 if cache is None else cache.tokens
        stop = start + tokens_BT.shape[1]
        turns_TC2 = None if self.turns_TC2 is None else self.turns_TC2[start:stop]
        x_BTD = self.dropout(self.embedded(tokens_BT, start, cache))
        for number, block in enumerate(self.blocks):
            x_BTD = self.through(block, x_BTD, turns_TC2, *([] if cache is None else [cache.of_blocks[number]]))
        return self.norm(x_BTD)

    def embedded(self, tokens_BT: torch.Tensor, start: int, cache: GPTCache | None) -> torch.Tensor:
        """What goes into the first block [B, T, D]."""
        if self.next_position is not None:
            assert self.position is not None  # places that are told are learned
            tokens_BT, next_BT = tokens_BT.unbind(-1)
            here_BT = F.pad(next_BT[:, :-1], (1, 0), value=self.context)
            if cache is not None:
                here_BT = here_BT if cache.next_B1 is None else torch.cat([cache.next_B1, here_BT[:, 1:]], dim=1)
                cache.next_B1 = next_BT[:, -1:]
            return self.embedding(tokens_BT) + self.position(here_BT) + self.next_position(next_BT)
        if self.position is not None:
            return self.embedding(tokens_BT) + self.position.weight[start : start + tokens_BT.shape[1]]
        return self.embedding(tokens_BT)
