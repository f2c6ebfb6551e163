"""How sure a mean over seeds and held-out windows is: its variance, in parts, and an interval that covers.

A measured quantity is a mean of parts[s, w]: what window w adds with the models of seed s. Three things scatter it
about its expectation over seeds and held-out text, and an interval here is for that expectation:

- **seeds**: initial weights and the order of training. The variance of the seeds' means, by the number of seeds.
- **windows**: the held-out text. Neighbouring windows are alike, so their mean is less certain than that of as many
  independent ones: its variance is the spectrum of the series at frequency 0. The series' coefficients on the slowest
  cosines are independent and each has about that variance; the mean of their squares is the estimate, with as many
  degrees of freedom (Müller 2004; Lazarus, Lewis, Stock and Watson 2018). How many cosines, the data decide
  (`flat_cosines`). Where documents are known, they take the place of cosines.
- **interaction**: a seed is better at some windows than another seed. Both variances above hold it, so it is counted
  once.

Where each seed has held out a fold of its own, all that a text adds is the seed's: the windows' variance is
interaction, which the seeds' holds already, and is only the least that the seeds' can be. That models of two folds
were trained on much the same text is not in the interval, nor is it where all have one held-out text (there is no
unbiased estimate of it: Bengio and Grandvalet 2004).

Why not a bootstrap of blocks as long as the autocorrelations last: it misses correlations that are weak at each lag and
long, and does not know how badly the variance is known.

The quantiles of Student's t for seeds and for windows are weighted by their variances (Cochran and Cox 1950). With two
seeds, Welch and Satterthwaite's degrees of freedom cover 88 %: seeds that agree by chance pass for seeds that are known
to agree. Seeds' noise may be skewed, and Student's t covers only 88 % with five exponential seeds; so as far as the
noise is the seeds', their quantile is that of 96.7 % where 95 % is meant. What it all covers: `python -m
benchmarks.coverage`.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

LEVEL = 0.95
POWER = 0.8  # share of measurements in which `detectable` is told from zero
# Of the probability outside, what the quantile for skewed seeds leaves outside: 3.3 % where 5 % are meant.
SKEWED = 2 / 3
FEWEST_COSINES, MOST_COSINES = 6, 48
FITTED_COSINES = 256
FLATNESS = 0.9  # of the mean of the cosines that are used, by the fitted spectrum's value at frequency 0
FIRST_SEEDS = 8  # before it is asked whether they suffice: see next_seeds
MOST_SEEDS = 1_000  # that a plan proposes

Interval = tuple[float, float]


@dataclass(frozen=True)
class Noise:
    """Variances of a mean over seeds and windows, of which `seeds` and `windows` each hold the `interaction`.

    `seeds_df` and `windows_df` are the degrees of freedom with which the two are known. With one seed nothing is known
    of seeds, and `seeds_df` is 0.
    """

    seeds: float
    windows: float
    interaction: float
    seeds_df: float
    windows_df: float

    @property
    def variance(self) -> float:
        return self.windows + max(self.seeds - self.interaction, 0.0)

    @property
    def se(self) -> float:
        return math.sqrt(self.variance)

    def critical(self, level: float = LEVEL, skewed: float = SKEWED) -> float:
        """How many standard errors the interval of this level reaches to either side; with skewed=1, for seeds that are
        normal."""
        of_windows = t_quantile(self.windows_df, level)
        if not self.seeds_df or not self.variance:
            return of_windows
        of_seeds, of_skewed = (t_quantile(self.seeds_df, 1 - factor * (1 - level)) for factor in (1, skewed))
        share = self.windows / self.variance
        return share * of_windows + (1 - share) * (share * of_seeds + (1 - share) * of_skewed)

    @property
    def half_width(self) -> float:
        return self.critical() * self.se

    @property
    def detectable(self) -> float:
        """The value that intervals like this one tell from zero in 80 % of measurements."""
        return (self.critical() + self.critical(2 * POWER - 1, skewed=1)) * self.se

    def p_value(self, value: float) -> float:
        """Two-sided: 1 less the level of the interval that ends at zero."""
        if not self.variance:
            return float(value == 0)
        t = abs(value) / self.se
        ends = [t_outside(t, self.windows_df)]
        if self.seeds_df:
            ends += [t_outside(t, self.seeds_df), t_outside(t, self.seeds_df) / SKEWED]
        low, high = (math.log(min(max(end, 1e-15), 1.0)) for end in (min(ends), max(ends)))  # 1 - p is told from 1
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.critical(1 - math.exp(middle)) > t else (low, middle)
        return math.exp(high)

    def with_seeds(self, n: int) -> "Noise":
        """What is to be expected of `n` seeds instead."""
        factor = (self.seeds_df + 1) / n
        return replace(
            self,
            seeds=factor * self.seeds,
            interaction=factor * self.interaction,
            windows=self.text + factor * self.interaction,
            seeds_df=n - 1,
        )

    @property
    def text(self) -> float:
        """The variance that no number of seeds makes smaller."""
        return max(self.windows - self.interaction, 0.0)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % intervals: over held-out windows, with these trained models; over seeds, on this held-out
    text (plain Student's t; None with one seed); and over both, which is the one to quote.

    `se`, `p` and `detectable` belong to `both`: its standard error, the two-sided p-value of zero, and the smallest
    value that such a measurement tells from zero in 80 % of cases. With one seed `both` can only be `windows`, and the
    last two are None.
    """

    value: float
    windows: Interval
    seeds: Interval | None
    both: Interval
    se: float
    p: float | None
    detectable: float | None
    noise: Noise


def estimate(value: float, noise: Noise) -> Estimate:
    """`value` with what its noise lets one say of it."""
    windows = around(value, t_quantile(noise.windows_df) * math.sqrt(noise.windows))
    if not noise.seeds_df:
        return Estimate(float(value), windows, None, windows, noise.se, None, None, noise)
    return Estimate(
        float(value),
        windows,
        around(value, t_quantile(noise.seeds_df) * math.sqrt(noise.seeds)),
        around(value, noise.half_width),
        noise.se,
        noise.p_value(value),
        noise.detectable,
        noise,
    )


def noise_of(
    parts: np.ndarray, block: float | None = None, documents: np.ndarray | None = None, folds: bool = False
) -> Noise:
    """The noise of the mean of `parts` [seeds, windows], windows in text order (see `components` for the rest). folds:
    whether each seed's windows are of a fold of its own."""
    n_seeds = len(parts)
    of_seeds = float(parts.mean(axis=1).var(ddof=1) / n_seeds) if n_seeds > 1 else 0.0
    if folds and n_seeds > 1:
        alone = [noise_of(of_seed[None], block) for of_seed in parts]
        windows, windows_df = added([(each.windows / n_seeds**2, each.windows_df) for each in alone])
        return Noise(max(of_seeds, windows), windows, windows, n_seeds - 1, windows_df)
    parts_K, windows_df = components(parts, block, documents)
    windows = np.mean(parts_K.mean(axis=0) ** 2)
    if n_seeds == 1:
        return Noise(0.0, float(windows), 0.0, 0, windows_df)
    interaction = parts_K.var(axis=0, ddof=1).mean() / n_seeds
    return Noise(of_seeds, float(windows), float(interaction), n_seeds - 1, windows_df)


def added(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of independent variances (variance, degrees of freedom), and its degrees of freedom after Welch and
    Satterthwaite.

    Where one of them is not known (0 degrees of freedom), neither is the sum.
    """
    total = float(sum(variance for variance, _ in variances))
    if min(df for _, df in variances) == 0:
        return 0.0, 0
    if total == 0:
        return 0.0, sum(df for _, df in variances)
    return total, total**2 / sum(variance**2 / df for variance, df in variances)


# Held-out text
# ----------------------------------------------------------------------------------------------------------


def components(
    parts: np.ndarray, block: float | None = None, documents: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Parts [n, windows] as [n, k] whose mean square over k is the variance of a row's mean, and the degrees of freedom
    of that variance.

    So it is for every linear combination of the rows. `documents` [windows]: equal entries are of one document, which
    varies as a whole; otherwise the series decides, or `block` does: windows that count as one, to be shared by all
    texts of a sweep, but at least n^(1/3).

    Raises ValueError where there are fewer than two documents, or not one for each window, or a block is below one.
    """
    n_windows = parts.shape[-1]
    if documents is None:
        if block is not None and block < 1:
            raise ValueError(f"expected a block of at least one window, found {block}")
        number, gain = flat_cosines(parts.mean(axis=0), block)
        return cosines(parts, number) * math.sqrt(gain / n_windows), number
    _, document_W, lengths = np.unique(documents, return_inverse=True, return_counts=True)
    n = len(lengths)
    if len(document_W) != n_windows or n < 2:
        raise ValueError(
            f"expected the document of each of {n_windows} windows, at least two documents; found {len(document_W)} "
            f"and {n}"
        )
    order = np.argsort(document_W, kind="stable")
    residuals = (parts - parts.mean(axis=-1, keepdims=True))[:, order]
    sums = np.add.reduceat(residuals, np.cumsum(lengths) - lengths, axis=1)
    # Long documents weigh more: their variance is known as well as that of so many equal ones (for residuals that vary
    # like the lengths).
    equal = float(np.sum(lengths**2.0) ** 2 / np.sum(lengths**4.0))
    return sums * (n / math.sqrt(n - 1) / n_windows), max(equal - 1, 1.0)


def cosines(series: np.ndarray, number: int) -> np.ndarray:
    """Coefficients of `series` [..., n] on the `number` slowest cosines, which for white noise have its variance. [...,
    number]"""
    n = series.shape[-1]
    spectrum = np.fft.rfft(np.concatenate([series, series[..., ::-1]], axis=-1))[..., 1 : number + 1]
    return (spectrum * np.exp(-0.5j * np.pi * np.arange(1, number + 1) / n)).real / math.sqrt(2 * n)


def most_cosines(n_windows: int) -> int:
    """How many cosines are used at most: with more, a correlation that is weak and long would not be seen."""
    return max(1, min(MOST_COSINES, int(n_windows ** (2 / 3)), n_windows - 1))


def flat_cosines(series: np.ndarray, block: float | None = None) -> tuple[int, float]:
    """On how many of the slowest cosines the spectrum of `series` [n] is flat, and frequency 0 by the mean of these.

    A spectrum of white noise and a correlation that falls exponentially, 1 + ratio / (1 + (k / bend)²), is fitted to
    the squares of the first 256 coefficients (Whittle's likelihood). The number is the largest whose mean is 90 % of
    the value at 0, at least 6, and at most 48 or n^(2/3), which is the floor of n^(1/3) for a block. Bends begin at 6:
    correlation lengths go up to n / 19 windows.

    block: windows that count as one, instead of what the series says; the number is then n / block. A block that is
    shorter than the series says is taken at its word: its mean is the value at 0.
    """
    n = len(series)
    most, fitted = most_cosines(n), min(FITTED_COSINES, n - 1)
    asked = None if block is None else max(1, min(round(n / block), int(n ** (2 / 3))))
    squares = cosines(series, fitted) ** 2
    if not squares.any():
        return asked or most, 1.0
    shapes, logarithms, flatness = spectra(fitted)
    best = np.argmin(fitted * np.log((1 / shapes) @ squares) + logarithms)
    number = int(np.clip(np.count_nonzero(flatness[best] >= FLATNESS), min(FEWEST_COSINES, most), most))
    if asked is not None and asked > number:
        return asked, 1.0
    number = asked or number
    return number, float(1 / flatness[best, number - 1])


@cache
def spectra(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapes of spectra [m, length], the sums of their logarithms [m], and the mean up to each frequency by the value
    at 0 [m, length]."""
    k = np.arange(1, length + 1)
    ratios = np.array([0, *2.0 ** np.arange(-1, 12)])[:, None, None]
    bends = FEWEST_COSINES * 2.0 ** np.arange(0, 5.5, 0.5)[:, None]
    shapes = 1 + ratios / (1 + (k / bends) ** 2)
    flatness = np.cumsum(shapes, axis=2) / k / (1 + ratios)
    shapes, flatness = (each.reshape(-1, length) for each in (shapes, flatness))
    return shapes, np.log(shapes).sum(axis=1), flatness


def standard_error(rows: np.ndarray, number: int, gain: float) -> np.ndarray:
    """Of the mean of each row of `rows` [n, windows], from so many cosines (`flat_cosines`). [n]"""
    return np.sqrt(gain * np.mean(cosines(rows, number) ** 2, axis=-1) / rows.shape[-1])


# How many seeds
# ---------------------------------------------------------------------------------------------------------


def seeds_needed(noise: Noise, half_width: float, most: int = MOST_SEEDS) -> int | None:
    """The smallest number of seeds whose interval is to be expected to reach `half_width` to either side; None where
    not even `most` do.

    Raises ValueError for the noise of one seed, which does not say how much seeds differ.
    """
    if not noise.seeds_df:
        raise ValueError("expected at least two seeds, found one: it does not say how much seeds differ")
    n = 2 + bisect_left(range(2, most + 1), True, key=lambda n: noise.with_seeds(n).half_width <= half_width)
    return n if n <= most else None


def text_needed(noise: Noise, half_width: float) -> float:
    """How many times as much held-out text takes half of the interval's squared half-width, and leaves the other half
    to the seeds."""
    return 2 * (t_quantile(noise.windows_df) / half_width) ** 2 * noise.text


def next_seeds(noise: Noise, half_width: float, most: int) -> int:
    """How many seeds to have before the interval is looked at again; the present number where it is time to stop.

    That is where the interval reaches no further than `half_width` to either side, where `most` seeds are there, or
    where the held-out text alone keeps it wider. Seeds that happen to agree stop too early, few of them most often:
    hence never before FIRST_SEEDS (with five, intervals cover 86 to 89 % of truths where seeds are skewed; with eight,
    90 %).
    """
    n = round(noise.seeds_df) + 1
    if n < FIRST_SEEDS:
        return max(n, min(FIRST_SEEDS, most))
    needed = seeds_needed(noise, half_width)
    if noise.half_width <= half_width or needed is None:
        return n
    return max(n, min(n + max((needed - n) // 2, 1), most))  # half of the way: by then it is known better


# Student's t
# ------------------------------------------------------------------------------------------------------------

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def t_outside(t: float, df: float) -> float:
    """P(|T| > t), the two-sided p-value, for Student's t of `df` (any real number from 1 up) degrees of freedom."""
    df = min(max(df, 1.0), 1e4)
    return outside_angle(math.atan(t / math.sqrt(df)), df)


@lru_cache(10_000)
def t_quantile(df: float, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = `level`."""
    df = min(max(df, 1.0), 1e4)
    angle, step = 0.0, 1.0
    while step > 1e-12:  # Newton's steps, which never pass the end: the density falls
        step = (outside_angle(angle, df) - (1 - level)) * quadrant(df) / math.cos(angle) ** (df - 1)
        angle += step
    return math.sqrt(df) * math.tan(angle)


def outside_angle(angle: float, df: float) -> float:
    """P(|T| > sqrt(df) tan(angle)): with that angle, the density becomes cos(angle)^(df - 1), which Gauss and Legendre
    sum."""
    reach = min(math.pi / 2 - angle, 20 / math.sqrt(df))  # beyond lies less than 1e-80
    return float(WEIGHTS @ np.cos(angle + reach * (NODES + 1) / 2) ** (df - 1)) * reach / 2 / quadrant(df)


def quadrant(df: float) -> float:
    """The integral of cos(angle)^(df - 1) from 0 to a right angle."""
    return math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2)) * math.sqrt(math.pi) / 2


def around(value: float, half_width: float) -> Interval:
    return (float(value - half_width), float(value + half_width))
