"""The arrow of time of one text, with its uncertainty, from the losses of its tokens in both directions.

Input everywhere: `forward` and `backward`, nats, [seeds, windows, tokens], both **in text order**: entry [s, w, t] is the loss of the
same token of the same held-out window, predicted by seed s's forward model from what stands before it and by seed s's backward model from
what stands after it. The arrow is the mean of backward - forward.

Why paired: the difficulty of a window varies by some 20 % between windows, the arrow is 1 %. Both directions
see the same windows, so the differences are taken first and averaged then.

What is uncertain, and which interval says so:

- `windows`: other held-out text of the same kind, with these trained models. Neighbouring windows belong to the same document, so
  they are resampled in blocks of consecutive windows (circular block bootstrap; Politis and Romano 1992), of a length that the data
  choose (`block_length`). Plain resampling of windows gives intervals which are too short: at a correlation of 0.5
  between neighbours, 95 % intervals cover the truth in 75 %.
- `seeds`: other initial weights and another order of the same training windows, on this held-out text. Student's t over the arrows of the
  seeds. With two or three seeds it is wide, as it should be.
- `both`: the sum of the two variances, with the degrees of freedom of Welch and Satterthwaite. This is the one to quote. With one seed it
  can only be the first, and the verdict says that the noise of training is not in it: training two models on a source without an arrow
  leaves them unequal, however much text they are then compared on.

Neither holds the choice of the training text.

Everything is plain numpy: it takes losses from wherever they come.
"""
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_BLOCKS = 10  # however correlated the windows look: a spread taken from fewer blocks says little
NUMBERS_AT_ONCE = 4_000_000  # block starts drawn at a time, 32 MB

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % intervals: over held-out windows, over seeds (None with one seed), and over both."""
    value: float
    windows: Interval
    seeds: Interval | None
    both: Interval


@dataclass(frozen=True)
class Arrow:
    """One comparison. Losses in nats per token, means over seeds; `percent` is the arrow relative to the forward loss."""
    forward: float
    backward: float
    nats: Estimate
    percent: Estimate
    paired_se: float  # of `nats`, over windows taken as independent: what papers usually quote
    per_seed: list[dict[str, float]]  # forward, backward, nats, percent of each
    n_windows: int
    n_tokens: int  # held-out tokens predicted in each direction
    block: int  # windows resampled together

    @property
    def verdict(self) -> str:
        """In words, from the interval over both."""
        low, high = self.nats.both
        certainty = "" if self.nats.seeds else " One seed: it holds for these two models, the noise of training is not in it."
        if low > 0:
            return f"Backward is harder: an arrow of time of {self.percent.value:+.2f} %, and its 95 % interval excludes zero.{certainty}"
        if high < 0:
            return f"Forward is harder: an arrow against time, {self.percent.value:+.2f} %, and its 95 % interval excludes zero.{certainty}"
        return f"No arrow can be told from zero: {self.percent.value:+.2f} %, and its 95 % interval includes zero.{certainty}"


def measure(forward: np.ndarray, backward: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Arrow:
    """The arrow between `forward` and `backward`, [seeds, windows, tokens] or [windows, tokens] nats in text order.

    Raises ValueError where the shapes differ, a loss is not finite, or there are fewer than two windows.
    """
    forward, backward = checked(forward, backward)
    forward_SW, backward_SW = (losses.mean(axis=2, dtype=np.float64) for losses in (forward, backward))
    difference_SW = backward_SW - forward_SW
    difference_W = difference_SW.mean(axis=0)
    n_windows = len(difference_W)
    block = block_length(difference_W)

    resampled = bootstrap_means(np.stack([forward_SW.mean(axis=0), difference_W], axis=1), block, resamples, seed)
    nats, percent = difference_W.mean(), 100 * difference_W.mean() / forward_SW.mean()
    nats_S, percent_S = difference_SW.mean(axis=1), 100 * difference_SW.mean(axis=1) / forward_SW.mean(axis=1)
    return Arrow(
        forward=float(forward_SW.mean()), backward=float(backward_SW.mean()),
        nats=estimate(nats, resampled[:, 1], n_windows / block, nats_S),
        percent=estimate(percent, 100 * resampled[:, 1] / resampled[:, 0], n_windows / block, percent_S),
        paired_se=standard_error(difference_W),
        per_seed=[{"forward": float(f), "backward": float(b), "nats": float(n), "percent": float(p)}
                  for f, b, n, p in zip(forward_SW.mean(axis=1), backward_SW.mean(axis=1), nats_S, percent_S, strict=True)],
        n_windows=n_windows, n_tokens=n_windows * forward.shape[2], block=block)


def estimate(value: float, resampled: np.ndarray, n_blocks: float, per_seed: np.ndarray) -> Estimate:
    """`value` with its intervals, from its bootstrap distribution and its values seed by seed.

    A bootstrap of k blocks knows their spread only as well as k - 1 degrees of freedom do, and draws from a sample whose variance is
    (k - 1) / k of the truth: its percentiles are moved apart for both reasons, as Student's t is wider than the normal.
    """
    df = n_blocks - 1
    widening = t_quantile(df) / NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(n_blocks / df)
    low, high = value + widening * (np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - value)
    windows = (float(low), float(high))
    if len(per_seed) == 1:
        return Estimate(float(value), windows, None, windows)

    windows_variance = resampled.var() * n_blocks / df
    seeds_variance = per_seed.var(ddof=1) / len(per_seed)
    both_df = (windows_variance + seeds_variance) ** 2 / max(
        windows_variance**2 / df + seeds_variance**2 / (len(per_seed) - 1), np.finfo(float).tiny)
    return Estimate(float(value), windows,
                    around(value, t_quantile(len(per_seed) - 1) * math.sqrt(seeds_variance)),
                    around(value, t_quantile(both_df) * math.sqrt(windows_variance + seeds_variance)))


def bootstrap_means(series: np.ndarray, block: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of `resamples` circular block bootstraps of `series` [n, k], the k columns resampled together. [resamples, k]

    Sums of blocks are taken once, from one running sum; a resample then adds n / block of them, and a last, shorter block makes its
    length exactly n. 10,000 resamples of 2,000 windows take a second with blocks of one, and 0.1 s with blocks of ten.
    """
    n = len(series)
    running = np.concatenate([np.zeros_like(series[:1]), np.cumsum(np.concatenate([series, series[:block]]), axis=0)])
    whole_sums = running[block:block + n] - running[:n]
    rest_sums = running[n % block:n % block + n] - running[:n]  # zeros where blocks fill the length
    random = np.random.default_rng(seed)
    at_once = max(1, NUMBERS_AT_ONCE // (n // block + 1))
    parts = []
    for start in range(0, resamples, at_once):
        m = min(at_once, resamples - start)
        parts.append(whole_sums[random.integers(n, size=(m, n // block))].sum(axis=1) + rest_sums[random.integers(n, size=m)])
    return np.concatenate(parts) / n


def block_length(series: np.ndarray) -> int:
    """Length of the blocks for a circular bootstrap of the mean of `series` [n], chosen from its autocorrelations.

    Politis and White (2004), corrected by Patton, Politis and White (2009): (2 g² / D)^(1/3) n^(1/3), where with the autocovariances R(k),
    g = sum |k| R(k) and D = 4/3 (sum R(k))², both summed with a flat-top window which ends at twice the lag where the correlations
    sink into noise. Independent windows get blocks of one. At most n / 10, so that ten blocks remain.
    """
    n = len(series)
    longest = max(1, n // FEWEST_BLOCKS)
    centred = series - series.mean()
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    most_lags = min(n - 1, math.ceil(math.sqrt(n)) + run)
    covariance = np.array([centred[: n - lag] @ centred[lag:] for lag in range(most_lags + 1)]) / n
    if covariance[0] == 0:
        return 1
    is_noise = np.abs(covariance[1:] / covariance[0]) < 2 * math.sqrt(math.log10(n) / n)
    quiet = next((lag for lag in range(len(is_noise) - run + 1) if is_noise[lag:lag + run].all()), len(is_noise) - run)
    lags = np.arange(min(2 * max(quiet, 0), most_lags) + 1)
    if len(lags) == 1:
        return 1
    weight = np.minimum(1, 2 * (1 - lags / lags[-1]))  # 1 up to the middle, then down to 0
    two_sided = np.where(lags == 0, 1, 2) * weight * covariance[: len(lags)]
    g, spectrum = lags @ two_sided, two_sided.sum()
    if spectrum <= 0 or g <= 0:  # windows that repel each other: single ones err on the safe side
        return 1
    return int(np.clip(round((1.5 * (g / spectrum) ** 2 * n) ** (1 / 3)), 1, longest))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """The t with P(|T| < t) = `level` for Student's t of `df` (any real number from 1 up) degrees of freedom.

    With t = sqrt(df) tan(angle) the density becomes cos(angle)^(df - 1), which is summed numerically: right to 1e-5.
    """
    df = min(max(df, 1.0), 1e4)
    angle = np.linspace(0, min(math.pi / 2, 20 / math.sqrt(df)), 100_001)  # beyond 20 / sqrt(df) lies less than 1e-80
    density = np.cos(angle) ** (df - 1)
    cumulative = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(level, cumulative / cumulative[-1], angle))


# Where the arrow lives --------------------------------------------------------------------------------------------------

def by_context(forward: np.ndarray, backward: np.ndarray) -> dict[str, np.ndarray]:
    """Losses and arrow against the number of text tokens already seen, 0 to T - 1 (BOS, always there, is not counted).

    The token at position t of a window is predicted forward after t tokens and backward after T - 1 - t. To compare equal
    knowledge, entry c sets forward's position c against backward's position T - 1 - c: other tokens of the same window, so this is paired
    by window only. Over many windows both positions hold the same kind of text, and the mean over c is the arrow exactly.

    Returns "tokens_seen", "forward", "backward", "arrow" and "arrow_se" (from blocks of windows), each [T].
    """
    forward, backward = checked(forward, backward)
    forward_WT, backward_WT = forward.mean(axis=0, dtype=np.float64), backward.mean(axis=0, dtype=np.float64)[:, ::-1]
    difference_WT = backward_WT - forward_WT
    block = block_length(difference_WT.mean(axis=1))
    return {"tokens_seen": np.arange(forward.shape[2]), "forward": forward_WT.mean(axis=0), "backward": backward_WT.mean(axis=0),
            "arrow": difference_WT.mean(axis=0), "arrow_se": standard_error(block_means(difference_WT, block))}


def by_class(forward: np.ndarray, backward: np.ndarray, classes: np.ndarray, names: list[str]) -> list[dict]:
    """The arrow within each class of tokens. `classes` [windows, tokens] holds indices into `names`; classes without tokens are left out.

    Each row: "name", "tokens", "forward", "backward", "arrow" (nats per token of the class), "arrow_se" and "share" of the whole arrow (the
    shares add to 1). The standard error is that of a ratio of two sums over blocks of windows, since the number of
    such tokens varies too.
    """
    forward, backward = checked(forward, backward)
    forward_WT, backward_WT = forward.mean(axis=0, dtype=np.float64), backward.mean(axis=0, dtype=np.float64)
    difference_WT = backward_WT - forward_WT
    block, total = block_length(difference_WT.mean(axis=1)), difference_WT.sum()
    rows = []
    for index, name in enumerate(names):
        mine_WT = classes == index
        if n := int(mine_WT.sum()):
            arrow = difference_WT[mine_WT].mean()
            residual_W = np.where(mine_WT, difference_WT - arrow, 0).sum(axis=1)
            rows.append({"name": name, "tokens": n,
                         "forward": float(forward_WT[mine_WT].mean()), "backward": float(backward_WT[mine_WT].mean()),
                         "arrow": float(arrow), "arrow_se": float(standard_error(block_means(residual_W, block)) * len(mine_WT) / n),
                         "share": float(n * arrow / total) if total else 0.0})
    return rows


# Units ------------------------------------------------------------------------------------------------------------------

def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits for each byte of UTF-8 text: comparable between tokenizers and languages, unlike nats per token."""
    return nats_per_token / math.log(2) / bytes_per_token


def perplexity(nats_per_token: float) -> float:
    """Out of how many equally likely tokens the model seems to choose."""
    return math.exp(nats_per_token)


# Helpers ----------------------------------------------------------------------------------------------------------------

def checked(forward: np.ndarray, backward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as [seeds, windows, tokens]; ValueError where they cannot be compared."""
    forward, backward = np.asarray(forward), np.asarray(backward)
    if forward.shape != backward.shape or forward.ndim not in (2, 3):
        raise ValueError(f"losses: expected two equal shapes [seeds, windows, tokens], found {forward.shape} and {backward.shape}")
    if forward.shape[-2] < 2:
        raise ValueError(f"expected at least two held-out windows, found {forward.shape[-2]}")
    if not (np.isfinite(forward).all() and np.isfinite(backward).all()):
        raise ValueError("losses: expected finite numbers only")
    return (forward, backward) if forward.ndim == 3 else (forward[None], backward[None])


def standard_error(values: np.ndarray) -> np.ndarray | float:
    """Of the mean of independent values, along the first axis."""
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))


def block_means(series: np.ndarray, block: int) -> np.ndarray:
    """Means of whole blocks of `block` consecutive entries along the first axis; a shorter last one is left out."""
    n_blocks = len(series) // block
    return series[: n_blocks * block].reshape(n_blocks, block, *series.shape[1:]).mean(axis=1)


def around(value: float, half_width: float) -> Interval:
    return (float(value - half_width), float(value + half_width))
