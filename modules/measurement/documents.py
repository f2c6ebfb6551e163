"""The documents of the held-out text: what varies as a whole, and where the arrow is largest.

An .h5 may say at which tokens its documents begin. Windows do not end where documents do, so intervals are clustered by
groups of neighbouring documents: a window belongs to the document that holds its middle, and documents are joined until
a group has n^(1/3) windows, the floor of a block. So at most one window in n^(1/3) is shared by two groups, and
documents shorter than a window, which are like their neighbours, are not taken for independent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modules.data.windows import Windows

FEWEST_GROUPS = 7  # with fewer, too little is known of how they vary, and the series of windows decides
PASSAGE_TOKENS = 64
LISTED = 5  # either way


def groups_of(documents: np.ndarray, windows: Windows) -> np.ndarray | None:
    """The group [windows] of neighbouring documents to which each window belongs, from 0; None where they are fewer
    than FEWEST_GROUPS. `documents`: the first token of each, in order."""
    middles = windows.starts(np.arange(windows.count)) + windows.length // 2
    document_W = np.searchsorted(documents, middles, side="right")
    least = math.ceil(windows.count ** (1 / 3))
    firsts: list[int] = []
    for first in np.flatnonzero(np.diff(document_W, prepend=-1)):
        if (not firsts or first - firsts[-1] >= least) and (not firsts or windows.count - first >= least):
            firsts.append(int(first))
    if len(firsts) < FEWEST_GROUPS:
        return None
    return np.searchsorted(firsts, np.arange(windows.count), side="right") - 1


def document_of_tokens(documents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The number of the document of each of tokens [...], by their places in the file."""
    return np.searchsorted(documents, tokens, side="right") - 1


@dataclass(frozen=True)
class Stretch:
    """A document or passage: its number, its first token (both counted in the held-out text for passages, in the file
    for documents), losses in nats per token, and its first words where a tokenizer tells them."""

    number: int
    first_token: int
    tokens: int
    forward: float
    backward: float
    nats: float
    percent: float
    words: str | None


@dataclass(frozen=True)
class Largest:
    """The stretches of at least `least_tokens` tokens with the largest arrows either way, the largest first.

    count: how many there are; sd: the standard deviation of their arrows, nats per token. The largest of so many are
    large by chance too.
    """

    count: int
    least_tokens: int
    sd: float
    stretches: list[Stretch]


def sums_by(labels: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of stretches of equal labels [n]: label, place of the first token, number of tokens and sum of `losses` [n]."""
    found, first, of_token, tokens = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    return found, first, tokens, np.bincount(of_token, weights=losses)


def largest(
    forward: np.ndarray,
    backward: np.ndarray,
    labels: np.ndarray,
    places: np.ndarray,
    words_at: Callable[[int, int], str] | None = None,
) -> Largest | None:
    """The stretches of equal `labels` [windows x tokens] with the largest arrows, of losses [seeds, windows, tokens].

    places: what is told of where each token stands [windows x tokens]. words_at: the words from a place in the held-out
    text on, for so many tokens. None where fewer than two stretches
    are as long as a passage.
    """
    found, first, tokens, forward_sums = sums_by(labels, forward.mean(axis=0, dtype=np.float64).ravel())
    backward_sums = sums_by(labels, backward.mean(axis=0, dtype=np.float64).ravel())[3]
    long = np.flatnonzero(tokens >= PASSAGE_TOKENS)
    if len(long) < 2:
        return None
    arrows = (backward_sums - forward_sums) / tokens
    order = long[np.argsort(-arrows[long], kind="stable")]
    listed = order if len(order) <= 2 * LISTED else np.concatenate([order[:LISTED], order[-LISTED:]])
    return Largest(
        len(long),
        PASSAGE_TOKENS,
        float(arrows[long].std(ddof=1)),
        [
            Stretch(
                number=int(found[i]),
                first_token=int(places[first[i]]),
                tokens=int(tokens[i]),
                forward=float(forward_sums[i] / tokens[i]),
                backward=float(backward_sums[i] / tokens[i]),
                nats=float(arrows[i]),
                percent=float(100 * (backward_sums[i] / forward_sums[i] - 1)),
                words=words_at(int(first[i]), int(tokens[i])) if words_at else None,
            )
            for i in listed
        ],
    )
