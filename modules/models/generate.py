"""Tokens that a model makes up, one after another.

The window. A model reads a start token (BOS, or that of an order) and the tokens behind it, `context` in all, as in
training. When the window is full it goes on with the start token and the last half of the others, which are read once
more, and fills again. So a token is made up from half a context or more; and as long as the window fills, what was read
is kept in a cache (keys and values; the hidden state of GRU and LSTM) and each token is read once: two passes of a
token for each that is made up, where reading the window again takes 128 to 256 at a context of 256. A window that moved
on by one token would have to be read again each time: places count from its start, and what was read of each token
depends on those that left it. Without the cache the windows are the same, and so are the logits but for their last
digits (tests/models/test_generate.py).

Where places are told, a window has them all, and does not move.

Shapes: B batch, T time, V vocabulary.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from modules.models.language_model import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits.

    temperature: divides the logits; at 0 the likeliest token is taken. top_k: only of the so many likeliest. top_p:
    only of the likeliest that together have this probability (nucleus sampling, A. Holtzman et al., arXiv 1904.09751),
    after the other two.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def drawn(self, logits_BV: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A token [B] for each row."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        ids_BV = None  # the vocabulary as it is; else the tokens that are left, the likeliest first
        if self.top_k is not None:
            logits_BV, ids_BV = logits_BV.topk(min(self.top_k, logits_BV.shape[-1]))
        if self.temperature != 1:
            logits_BV = logits_BV / self.temperature
        probabilities_BV = logits_BV.softmax(-1)
        if self.top_p is not None:
            if ids_BV is None:
                probabilities_BV, ids_BV = probabilities_BV.sort(descending=True)
            probabilities_BV = probabilities_BV.masked_fill(
                probabilities_BV.cumsum(-1) - probabilities_BV >= self.top_p, 0.0
            )
        # A race: each token comes after a time, exponential with its probability as rate, and the first is taken. Last
        # digits of the probabilities change the winner once in a million draws, where a walk along their sums would
        # change it once in hundreds. (torch.multinomial does the same, at four times the time.)
        uniform_BV = torch.rand(probabilities_BV.shape, device=probabilities_BV.device, generator=generator)
        chosen_B = (probabilities_BV / -uniform_BV.log()).argmax(-1)
        return chosen_B if ids_BV is None else ids_BV.gather(-1, chosen_B[:, None])[:, 0]


def generate(
    model: LanguageModel,
    tokens_BT: torch.Tensor,
    n_tokens: int,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    places_BT: torch.Tensor | None = None,
    cached: bool = True,
) -> torch.Tensor:
    """`tokens_BT` [B, T >= 1] and `n_tokens` that follow: [B, T + n_tokens], in the order of reading; see `continued`.
    The model is left in the mode in which it came."""
    was_training = model.training
    model.eval()
    try:
        new = continued(model, tokens_BT, sampling, generator, places_BT, cached)
        return torch.cat([tokens_BT, *(next_B[:, None] for next_B in itertools.islice(new, n_tokens))], dim=1)
    finally:
        model.train(was_training)


def continued(
    model: LanguageModel,
    tokens_BT: torch.Tensor,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    places_BT: torch.Tensor | None = None,
    cached: bool = True,
) -> Iterator[torch.Tensor]:
    """Yields the next token [B] of each row after `tokens_BT` [B, T], for ever. The first of each row is a start token;
    of rows that are longer than the context the last tokens are read. `model` is in eval mode.

    A `generator` on the tokens' device makes the sample repeatable. places_BT: for a model that is told places, that of
    the token to predict after each, [B, at least as many as are read], no more than a window.
    """
    sampling = sampling or Sampling()
    start_B1, tokens_BT = (
        tokens_BT[:, :1],
        torch.cat([tokens_BT[:, :1], tokens_BT[:, 1:][:, 1 - model.context :]], dim=1),
    )
    cache, first = None, 0
    while True:
        first_before, first = first, first_seen(tokens_BT.shape[1], model.context)
        if cache is not None and first == first_before:
            read = tokens_BT[:, -1:]
        else:
            read = torch.cat([start_B1, tokens_BT[:, first:]], dim=1)
            cache = model.start_cache() if cached else None
        if places_BT is not None:
            read = torch.stack([read, places_BT[:, : tokens_BT.shape[1]][:, -read.shape[1] :]], dim=-1)
        next_B = sampling.drawn(model.next_logits(read, cache), generator)
        tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
        yield next_B


def first_seen(count: int, context: int) -> int:
    """Which of `count` tokens is the first that the model sees behind the start token, 0; all from it on are seen."""
    if count <= context:
        return 1
    kept = context // 2
    windows_before = (count - context - 1) // (context - kept)
    return context + 1 - kept + windows_before * (context - kept)
