"""The arrow of time of one text, with its uncertainty, from the losses of its tokens in both directions.

Input everywhere: `forward` and `backward`, nats, [seeds, windows, tokens], both **in text order**: entry [s, w, t] is
the loss of the same token of the same held-out window, predicted by seed s's forward model from what stands before it
and by seed s's backward model from what stands after it. The arrow is the mean of backward - forward. Where only means
of windows are known, [seeds, windows], they are windows of one token: `losses[..., None]`.

Why paired: the difficulty of a window varies by some 20 % between windows, the arrow is 1 %. Both directions
see the same windows, so the differences are taken first and averaged then.

Intervals are for the expected arrow over seeds and held-out text (noise.py). They do not account for the choice of the
training text. One seed says how two models differ and nothing of the text: two models trained on a source without an
arrow are unequal, however much text they are then compared on.

Any two orders of reading are compared like the two directions: what is called forward here is the order to which the
other is compared, and what is called backward is that other.

Everything is plain numpy: it takes losses from wherever they come.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.data.orders import BACKWARD, FORWARD, positions, to_reading_order
from modules.measurement.noise import (
    FEWEST_COSINES,
    MOST_SEEDS,
    Estimate,
    Interval,
    estimate,
    flat_cosines,
    most_cosines,
    noise_of,
    seeds_needed,
    standard_error,
    t_quantile,
    text_needed,
)

__all__ = [
    "OF_THE_MEAN",
    "Arrow",
    "ByContext",
    "ByPosition",
    "ClassRow",
    "Estimate",
    "Interval",
    "OneSeed",
    "Sample",
    "bits_per_byte",
    "block_for",
    "by_class",
    "by_context",
    "by_position",
    "measure",
    "perplexity",
    "sample",
    "shared_block",
    "t_quantile",
]

OF_THE_MEAN = "percent of the mean"  # a unit of `sample`
GOAL = 0.1  # percent to either side: where arrows of one percent can be compared


@dataclass(frozen=True)
class OneSeed:
    """The arrow between the models of one seed."""

    forward: float
    backward: float
    nats: float
    percent: float


@dataclass(frozen=True)
class Arrow:
    """One comparison. Losses in nats per token, means over seeds; `percent` is the arrow relative to the forward
    loss.

    verdict: the result in a sentence. outlook: what this measurement could have found, and what a narrower interval
    would take.
    """

    forward: float
    backward: float
    nats: Estimate
    percent: Estimate
    paired_se: float  # of `nats`, over windows taken as independent: what papers usually quote
    per_seed: list[OneSeed]
    seeds_sd: float | None  # standard deviation over seeds of the arrow in percent; None with one seed
    n_windows: int
    n_tokens: int  # held-out tokens predicted in each direction
    block: int  # windows that count as one, by their correlation; on average, where documents say which

    verdict: str
    outlook: str


@dataclass(frozen=True)
class Sample:
    """An arrow in percent, and what each window of each seed adds to it: `parts` [seeds, windows], in text order, of
    mean zero.

    What contrasts are made of (contrast.py), at 8 bytes a window and seed. `documents` [windows], `folds`: see
    `measure`.
    """

    value: float
    parts: np.ndarray
    documents: np.ndarray | None = None
    folds: bool = False


def sample(
    forward: np.ndarray,
    backward: np.ndarray,
    documents: np.ndarray | None = None,
    unit: str = "percent",
    folds: bool = False,
) -> Sample:
    """The arrow as a sample, from losses as `measure` takes them.

    unit: "percent" of the forward loss; OF_THE_MEAN of both losses, which is the opposite where the two
    losses are exchanged (+25 % turned round is -20 % of the forward loss); "nats" per token.
    """
    forward_SW, backward_SW = (losses.mean(axis=2, dtype=np.float64) for losses in checked(forward, backward))
    if unit == "nats":
        difference_SW = backward_SW - forward_SW
        return Sample(float(difference_SW.mean()), difference_SW - difference_SW.mean(), documents, folds)
    whole_SW = forward_SW if unit == "percent" else (forward_SW + backward_SW) / 2
    of_forward, of_backward = (each.mean() / whole_SW.mean() for each in (forward_SW, backward_SW))
    # A ratio of two means, to first order in what each window adds to them.
    parts = (backward_SW - of_backward * whole_SW) - (forward_SW - of_forward * whole_SW)
    return Sample(float(100 * (of_backward - of_forward)), 100 * parts / whole_SW.mean(), documents, folds)


def measure(
    forward: np.ndarray,
    backward: np.ndarray,
    block: float | None = None,
    documents: np.ndarray | None = None,
    order: str = BACKWARD,
    reference: str = FORWARD,
    in_one_model: bool = False,
    folds: bool = False,
) -> Arrow:
    """The arrow between `forward` and `backward`, [seeds, windows, tokens] or [windows, tokens] nats in text order.

    block: windows that count as one, where all texts of a sweep are to share it; by default the correlation of the
    windows decides. documents: the document of each window [windows], any labels: then documents are what varies, and
    `block` is not asked. order, reference: what the orders of reading of `backward` and `forward` are called.
    in_one_model: whether a seed's losses in both are of one model. folds: whether each seed's windows are of a held-out
    fold of its own.

    Raises ValueError where the shapes differ, a loss is not finite, or there are fewer than two windows or documents.
    """
    forward, backward = checked(forward, backward)
    forward_SW, backward_SW = (losses.mean(axis=2, dtype=np.float64) for losses in (forward, backward))
    difference_SW = backward_SW - forward_SW
    percents = sample(forward, backward)
    nats_S, percent_S = difference_SW.mean(axis=1), 100 * difference_SW.mean(axis=1) / forward_SW.mean(axis=1)
    nats = estimate(difference_SW.mean(), noise_of(difference_SW, block, documents, folds))
    held_out_VW = difference_SW if folds else difference_SW.mean(axis=0, keepdims=True)
    n_windows = held_out_VW.size
    n_pieces = nats.noise.windows_df if documents is None else len(np.unique(documents))
    percent = estimate(percents.value, noise_of(percents.parts, block, documents, folds))
    seeds_sd = float(percent_S.std(ddof=1)) if len(percent_S) > 1 else None
    return Arrow(
        forward=float(forward_SW.mean()),
        backward=float(backward_SW.mean()),
        nats=nats,
        percent=percent,
        paired_se=float(held_out_VW.std(ddof=1) / math.sqrt(n_windows)),
        per_seed=[
            OneSeed(*map(float, values))
            for values in zip(forward_SW.mean(axis=1), backward_SW.mean(axis=1), nats_S, percent_S, strict=True)
        ],
        seeds_sd=seeds_sd,
        n_windows=n_windows,
        n_tokens=n_windows * forward.shape[2],
        block=round(n_windows / n_pieces),
        verdict=verdict(nats, percent.value, order, reference, in_one_model),
        outlook=outlook(percent, seeds_sd, folds=folds),
    )


def verdict(nats: Estimate, percent: float, order: str, reference: str, in_one_model: bool) -> str:
    """The result in a sentence, from the interval over both; without a direction where there is one seed."""
    low, high = nats.both
    if nats.seeds is None:
        who = "this model's two losses" if in_one_model else "these two models"
        return (
            f"One seed: {who} differ by {abs(percent):.2f} %; at least 3 seeds (5 are the default) tell "
            "whether the text does."
        )
    if (reference, order) != (FORWARD, BACKWARD):
        if low > 0 or high < 0:
            how = "harder" if low > 0 else "easier"
            return f"{order} is {how} than {reference}: {percent:+.2f} %, and its 95 % interval excludes zero."
        return f"{order} cannot be told from {reference}: {percent:+.2f} %, and its 95 % interval includes zero."
    if low > 0:
        return f"Backward is harder: an arrow of time of {percent:+.2f} %, and its 95 % interval excludes zero."
    if high < 0:
        return f"Forward is harder: an arrow against time, {percent:+.2f} %, and its 95 % interval excludes zero."
    return f"No arrow can be told from zero: {percent:+.2f} %, and its 95 % interval includes zero."


def outlook(percent: Estimate, seeds_sd: float | None, half_width: float = GOAL, folds: bool = False) -> str:
    """What a measurement could have found, and what an interval of ± `half_width` percent would take. Sentences.
    folds: as `measure` has them."""
    if seeds_sd is None:
        return (
            "One seed does not say how much seeds differ: the smallest arrow that could have been found is not known."
        )
    noise, n = percent.noise, round(percent.noise.seeds_df) + 1
    found = (
        f"The arrow's standard deviation over seeds is {seeds_sd:.2f} %; the smallest arrow that such a measurement "
        f"finds, four times in five, is {percent.detectable:.2f} %."
    )
    if noise.half_width <= half_width:
        return f"{found} Its interval is within ±{half_width:g} %."
    if (needed := seeds_needed(noise, half_width)) is not None:
        more = max(needed - n, 1)
        seeds = f"{more} more seed{'s' * (more > 1)}{', each with a fold of its own' * folds}"
        return f"{found} An interval of ±{half_width:g} % takes about {seeds}."
    if (times := text_needed(noise, half_width)) < 2:  # the text would do
        return f"{found} An interval of ±{half_width:g} % takes more than {MOST_SEEDS:,} seeds."
    return (
        f"{found} An interval of ±{half_width:g} % is not to be had by seeds alone: it needs about "
        f"{times:,.{1 if times < 10 else 0}f} times the held-out text."
    )


def shared_block(arrows: Sequence[Arrow]) -> float | None:
    """How many held-out tokens count as one where all of these arrows are to be judged alike: what the longest
    correlation that one of them saw takes, in tokens, since windows may differ in length.

    Texts of one kind have correlations of one kind, and some of them do not see theirs by chance. None where none saw
    any: each then has as many cosines as its windows allow.
    """
    seen = [
        each.n_tokens / estimate.noise.windows_df
        for each in arrows
        for estimate in (each.nats, each.percent)
        if estimate.noise.windows_df < most_cosines(each.n_windows)
    ]
    return max(seen, default=None)


def block_for(found: Arrow, tokens: float) -> float:
    """The block, in windows, with which an arrow counts so many tokens as one: no shorter than its own, and of at most
    a sixth of its windows."""
    own = found.n_windows / min(found.nats.noise.windows_df, found.percent.noise.windows_df)
    shared = tokens * found.n_windows / found.n_tokens
    return max(1.0, min(max(own, shared), found.n_windows / FEWEST_COSINES))


# Where the arrow lives
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByContext:
    """Losses and arrow, nats per token, against the text tokens seen: all [T]. `arrow_se`: over windows, with these
    models."""

    tokens_seen: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    arrow: np.ndarray
    arrow_se: np.ndarray


@dataclass(frozen=True)
class ByPosition:
    """Losses and arrow, nats per token, against the place in the window as the text has it: all [T]. `arrow_se`: over
    windows, with these models."""

    position: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    arrow: np.ndarray
    arrow_se: np.ndarray


@dataclass(frozen=True)
class ClassRow:
    """The arrow within a class of tokens, nats per token of the class.

    arrow_se: over windows, with these models; that of a ratio, since the number of such tokens varies too. share: of
    the whole arrow. Shares add to 1; they are None where the whole arrow is below two of its standard errors: a share
    of it would be one of noise.
    """

    name: str
    tokens: int
    forward: float
    backward: float
    arrow: float
    arrow_se: float
    share: float | None


def by_context(
    forward: np.ndarray, backward: np.ndarray, places: tuple[np.ndarray, np.ndarray] | None = None
) -> ByContext:
    """Losses and arrow against the number of text tokens already seen, 0 to T - 1 (BOS, always there, is not counted).

    places: where in the text the tokens stand that each of the two orders reads one after the other, [T], or [windows,
    T] where each window has an order of its own; by default those of forward and backward.

    The token at position t of a window is predicted forward after t tokens and backward after T - 1 - t. To compare
    equal knowledge, entry c sets forward's position c against backward's position T - 1 - c: other tokens of the same
    window, so this is paired by window only. Over many windows both positions hold the same kind of text, and the mean
    over c is the arrow exactly.
    """
    both = checked(forward, backward)
    length = both[0].shape[2]
    places = places or (positions(FORWARD, length), positions(BACKWARD, length))
    read = (
        to_reading_order(losses.mean(axis=0, dtype=np.float64), of_order)
        for losses, of_order in zip(both, places, strict=True)
    )
    return ByContext(np.arange(length), *columns(*read))


def by_position(forward: np.ndarray, backward: np.ndarray) -> ByPosition:
    """Losses and arrow at each place of a window in the text, token by token."""
    forward, backward = checked(forward, backward)
    in_text = (losses.mean(axis=0, dtype=np.float64) for losses in (forward, backward))
    return ByPosition(np.arange(forward.shape[2]), *columns(*in_text))


def columns(forward_WT: np.ndarray, backward_WT: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each column: both means, the mean difference and its standard error over windows, all [T]."""
    difference_WT = backward_WT - forward_WT
    return (
        forward_WT.mean(axis=0),
        backward_WT.mean(axis=0),
        difference_WT.mean(axis=0),
        standard_error(difference_WT.T, *flat_cosines(difference_WT.mean(axis=1))),
    )


def by_class(
    forward: np.ndarray, backward: np.ndarray, classes: np.ndarray, names: list[str], words: np.ndarray | None = None
) -> list[ClassRow]:
    """The arrow within each class of tokens. `classes` [windows, tokens] holds indices into `names`; classes without
    tokens are left out.

    words [windows, tokens]: equal entries are of one word, all of whose tokens count in the class of its first.
    Forward, a word's first token is the hard one, backward its last: an arrow of word starts against one of inner
    pieces is the chain rule inside words, and says nothing of the text.
    """
    forward, backward = checked(forward, backward)
    if words is not None:
        _, first, of_token = np.unique(words, return_index=True, return_inverse=True)
        classes = classes.ravel()[first][of_token].reshape(classes.shape)
    forward_WT, backward_WT = forward.mean(axis=0, dtype=np.float64), backward.mean(axis=0, dtype=np.float64)
    difference_WT = backward_WT - forward_WT
    difference_W = difference_WT.sum(axis=1)
    flat = flat_cosines(difference_W)
    shares = abs(difference_W.mean()) >= 2 * standard_error(difference_W[None], *flat)[0] > 0
    rows = []
    for index, name in enumerate(names):
        mine_WT = classes == index
        if n := int(mine_WT.sum()):
            arrow = difference_WT[mine_WT].mean()
            residual_W = np.where(mine_WT, difference_WT - arrow, 0).sum(axis=1)
            rows.append(
                ClassRow(
                    name=name,
                    tokens=n,
                    forward=float(forward_WT[mine_WT].mean()),
                    backward=float(backward_WT[mine_WT].mean()),
                    arrow=float(arrow),
                    arrow_se=float(standard_error(residual_W[None], *flat)[0] * len(mine_WT) / n),
                    share=float(n * arrow / difference_W.sum()) if shares else None,
                )
            )
    return rows


# Units
# ------------------------------------------------------------------------------------------------------------------


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits for each byte of UTF-8 text: comparable between tokenizers and languages, unlike nats per token."""
    return nats_per_token / math.log(2) / bytes_per_token


def perplexity(nats_per_token: float) -> float:
    """Out of how many equally likely tokens the model seems to choose."""
    return math.exp(nats_per_token)


# Helpers
# ----------------------------------------------------------------------------------------------------------------


def checked(forward: np.ndarray, backward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as [seeds, windows, tokens]; ValueError where they cannot be compared."""
    forward, backward = np.asarray(forward), np.asarray(backward)
    if forward.shape != backward.shape or forward.ndim not in (2, 3):
        raise ValueError(
            f"losses: expected two equal shapes [seeds, windows, tokens], found {forward.shape} and {backward.shape}"
        )
    if forward.shape[-2] < 2:
        raise ValueError(f"expected at least two held-out windows, found {forward.shape[-2]}")
    if not (np.isfinite(forward).all() and np.isfinite(backward).all()):
        raise ValueError("losses: expected finite numbers only")
    return (forward, backward) if forward.ndim == 3 else (forward[None], backward[None])
