"""What GPT, GRU and LSTM share: an embedding in front, a vocabulary head behind, and the loss between.

A model says how tokens become hidden vectors (`hidden`); everything by which forward
and backward are compared is here, once, the same for all. The head is a matrix of its
own, not the embedding's (untied), as in the paper's models.

Shapes: B batch, T time (tokens of a window, in the order of reading), D width, V vocabulary.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modules.fields import ModelParams
from modules.kernels.cross_entropy import loss_and_gradient, mean_loss, token_losses
from modules.kernels.linear import Linear

# Logits start with this standard deviation whatever the width, so that the first loss is ln(V) + 0.02.
# (GPT-2's fixed 0.02 a weight gives ln(V) + 0.3 at width 1,600.)
INITIAL_LOGIT_STD = 0.2


class LanguageModel(nn.Module):
    """Predicts each next token. A subclass says how tokens become hidden vectors, and brings all that the rest of the
    program asks of a model; MODELS (modules/models/__init__.py) gives it the name that a config has for it.

    Params: what `model_params` are in a config; the constructor takes them by name. compile_pays: whether
    "compile": "auto" compiles it on a GPU. checkpoint_activations: whether each of `parts` is computed once more in the
    backward pass, for memory. start_tokens: ids behind the vocabulary, which are read but never predicted: each tells
    the model in which of several orders it is to read.
    """

    Params: ClassVar[type[ModelParams]]
    compile_pays: ClassVar[bool] = False
    checkpoint_activations: bool = False

    def __init__(self, vocab_size: int, embed_dim: int, context: int, start_tokens: int = 0):
        super().__init__()
        self.context = context
        self._loss_and_gradient = loss_and_gradient
        self.embedding = nn.Embedding(vocab_size + start_tokens, embed_dim)
        self.head = Linear(embed_dim, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=INITIAL_LOGIT_STD / embed_dim**0.5)

    def hidden(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Hidden vectors [B, T, D], with unit variance, from which the head predicts the next token.

        `tokens_BT` [B, T] int64, or, for a model that is told places, [B, T, 2]: see `Windows.batch`. A model without
        `start_cache` need not take a cache.
        """
        raise NotImplementedError

    def start_cache(self) -> Any:
        """What `hidden` keeps of the tokens that it reads, so that those after them can be read alone; nothing is in it
        yet. None: it keeps nothing."""
        return None

    def parts(self) -> list[nn.Module]:
        """Its layers, where they can be compiled, sharded and computed once more one by one; `hidden` calls them by
        `through` then."""
        return []

    def through(self, part: nn.Module, *inputs: Any) -> torch.Tensor:
        """`part(*inputs)`; in training without keeping its activations, where the config asks for that."""
        if self.checkpoint_activations and self.training:
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def compile_parts(self) -> None:
        """Compile `parts` and the pointwise work of the loss; they are compiled when they are first used.

        Part by part, not as a whole: compiled once and used by all layers, and the gradients of a layer are ready for
        communication while the layer before is still computing.
        """
        for part in self.parts():
            part.compile()
        self._loss_and_gradient = torch.compile(loss_and_gradient, dynamic=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V] of the token after each of `tokens_BT` [B, T] int64."""
        return self.head(self.hidden(tokens_BT))

    def loss(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Mean loss in nats per token, a scalar in fp32; the logits are never held all at once."""
        hidden_ND = self.hidden(inputs_BT).flatten(0, 1)
        return mean_loss(hidden_ND, self.head.weight, targets_BT.flatten(), self._loss_and_gradient)

    def losses(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Loss of every token in nats [B, T] fp32, without gradients."""
        with torch.no_grad():
            hidden_ND = self.hidden(inputs_BT).flatten(0, 1)
            return token_losses(hidden_ND, self.head.weight, targets_BT.flatten()).view_as(targets_BT)

    def next_logits(self, tokens_BT: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Logits [B, V] fp32 of the token after `tokens_BT`, without gradients. With a cache of `start_cache`
        `tokens_BT` are those after the ones that it has seen."""
        # As they are: with the cache every call has another shape, for which compiled parts would be compiled anew.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            hidden_BTD = self.hidden(tokens_BT) if cache is None else self.hidden(tokens_BT, cache)
            return self.head(hidden_BTD[:, -1]).float()
