"""Contrasts: what several arrows say together, each with its interval and p-value.

All are sums of weighted arrows. Two arrows may share their seeds (initial weights and the order of the training
windows), their held-out text, or both. Then their noise is alike: it leaves a difference, and doubles in a sum. So
arrows that share seeds are added seed by seed, those that share held-out text stretch by stretch of it, and the rest
counts as independent. Several contrasts in one report go through `holm`: of twenty differences of nothing, one has p <
0.05.
"""

import functools
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from modules.measurement.arrow import Sample
from modules.measurement.noise import Estimate, Noise, added, estimate, noise_of

# What is measured on a text; or on a text and its control, as in `turning`: then the half that turns.
Measured = Sample | tuple[Sample, Sample]


def combination(
    samples: Sequence[Sample], weights: Sequence[float], seeds: Sequence[Hashable], texts: Sequence[Hashable]
) -> Estimate:
    """The sum of the weighted arrows. Samples with equal entries in `seeds` share their seeds, in `texts` their
    held-out text.

    Windows of a shared text may be of different lengths: two of 64 tokens then stand against one of 128. Documents
    count where all samples of a text have the same. Samples that share a text have its folds in common too.

    Raises ValueError where samples that share seeds have different numbers of them.
    """
    cells, documents = {}, {}  # (seeds, text) -> weighted parts [seeds, stretches]; text -> documents [stretches]
    folds = {label: each.folds for each, label in zip(samples, texts, strict=True)}
    for text in set(texts):
        on_it = [each for each, label in zip(samples, texts, strict=True) if label == text]
        stretches = min(each.parts.shape[1] for each in on_it)
        first = on_it[0].documents
        documents[text] = (
            first
            if first is not None
            and all(each.documents is not None and np.array_equal(each.documents, first) for each in on_it)
            else None
        )
        for each, weight, trained, label in zip(samples, weights, seeds, texts, strict=True):
            if label == text:
                cells.setdefault((trained, text), []).append(weight * stretch_means(each.parts, stretches))
    for added_up in cells.values():
        if len(numbers := {len(parts) for parts in added_up}) > 1:
            found = " and ".join(map(str, sorted(numbers)))
            raise ValueError(f"expected samples that share seeds to have equally many, found {found}")
    value = sum(weight * each.value for weight, each in zip(weights, samples, strict=True))
    return estimate(value, noise_of_cells({key: summed(parts) for key, parts in cells.items()}, documents, folds))


def noise_of_cells(
    cells: dict[tuple, np.ndarray], documents: dict[Hashable, np.ndarray | None], folds: dict[Hashable, bool]
) -> Noise:
    """The noise of a sum of means of cells (seeds, text), those of a row sharing their seeds and those of a column
    their text, of which each seed may have a fold of its own."""
    alone = {
        (trained, text): noise_of(parts, documents=documents[text], folds=folds[text])
        for (trained, text), parts in cells.items()
    }
    of_seeds, of_texts = [], []
    for trained in {key[0] for key in cells}:
        means_S = summed([parts.mean(axis=1) for key, parts in cells.items() if key[0] == trained])
        of_seeds.append((means_S.var(ddof=1) / len(means_S), len(means_S) - 1) if len(means_S) > 1 else (0.0, 0))
    for text in {key[1] for key in cells}:
        if folds[text]:
            of_texts += [(noise.windows, noise.windows_df) for key, noise in alone.items() if key[1] == text]
            continue
        means_W = summed([parts.mean(axis=0) for key, parts in cells.items() if key[1] == text])
        noise = noise_of(means_W[None], documents=documents[text])
        of_texts.append((noise.windows, noise.windows_df))
    (seeds, seeds_df), (windows, windows_df) = added(of_seeds), added(of_texts)
    return Noise(seeds, windows, sum(noise.interaction for noise in alone.values()), seeds_df, windows_df)


def summed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of arrays of one shape, of which there is at least one."""
    return functools.reduce(np.add, arrays)


def stretch_means(parts: np.ndarray, stretches: int) -> np.ndarray:
    """Parts [seeds, windows] as means over equal stretches of the text. [seeds, stretches]"""
    n_windows = parts.shape[1]
    if n_windows == stretches:
        return parts
    starts = np.arange(stretches) * n_windows // stretches
    return np.add.reduceat(parts, starts, axis=1) / np.diff(np.append(starts, n_windows))


# The contrasts of a report
# ----------------------------------------------------------------------------------------------


def contrast(one: Measured, other: Measured, *, same_seeds: bool, same_text: bool) -> Estimate:
    """The difference of two arrows, `one` - `other`, in percent points."""
    return weighted([one, other], [1, -1], same_seeds, same_text)


def trend(x: Sequence[float], arrows: Sequence[Measured], *, same_seeds: bool, same_text: bool) -> Estimate:
    """By how many percent points the arrow grows with each doubling of `x`: the slope of the straight line through
    three arrows or more.

    Raises ValueError for fewer than three different values, and for values that have no logarithm.
    """
    if len(set(x)) < 3 or min(x) <= 0:
        raise ValueError(
            f"expected at least three different values above zero for a trend, found {', '.join(map(str, x))}"
        )
    doublings = np.log2(np.asarray(x, dtype=float))
    centred = doublings - doublings.mean()
    return weighted(arrows, list(centred / np.sum(centred**2)), same_seeds, same_text)


def weighted(arrows: Sequence[Measured], weights: Sequence[float], same_seeds: bool, same_text: bool) -> Estimate:
    """The sum of the weighted arrows, which have all their seeds in common or none, and so their held-out text."""
    samples, of_samples, seeds, texts = [], [], [], []
    of_seeds, of_texts = labels(len(arrows), same_seeds), labels(len(arrows), same_text)
    for each, weight, trained, text in zip(arrows, weights, of_seeds, of_texts, strict=True):
        halves = ((each, 1),) if isinstance(each, Sample) else zip(each, (0.5, -0.5), strict=True)
        for place, (sample, part) in enumerate(halves):
            samples.append(sample)
            of_samples.append(weight * part)
            seeds.append(trained)
            texts.append((place, text))
    return combination(samples, of_samples, seeds, texts)


def turning(text: Sample, control: Sample, *, same_text: bool = False) -> tuple[Estimate, Estimate]:
    """The half of an arrow that turns round with the text, which is the arrow of time, and the half that does not.

    `control` is the same measurement of the reversed text, its windows in that text's own order; seeds are the same.
    The halves are (text - control) / 2 and (text + control) / 2; so samples in percent have to be of the mean of both
    losses, or large arrows that turn round exactly would leave a half that does not. What does not turn is the
    direction of tokenizer and training.

    same_text: the control's held-out windows are those of the text, reversed. Their noise turns with the text: the
    first half has all of it, as if there were no control, and the other none. False where they come from elsewhere: the
    end of the reversed text is the beginning of the text.
    """
    if same_text:
        control = replace(
            control,
            parts=control.parts[:, ::-1],
            documents=None if control.documents is None else control.documents[::-1],
        )
    turns, stays = (combination([text, control], [0.5, sign], [0, 0], labels(2, same_text)) for sign in (-0.5, 0.5))
    return turns, stays


def labels(n: int, same: bool) -> list[int]:
    return [0] * n if same else list(range(n))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted so that 5 % hold for the whole list (Holm 1979); None, of one seed, stays None and does not
    count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, index) in enumerate(known):
        least = adjusted[index] = max(least, min(1.0, p * (len(known) - rank)))
    return adjusted
