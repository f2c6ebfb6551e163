"""How often the 95 % intervals of modules/measurement/noise.py hold the truth, in simulation:

    python -m benchmarks.coverage [--runs 4000]

A simulated measurement is seeds x 3,840 windows: what all seeds lose at a window (correlated over the length given, as
exp(-distance / length)), what a seed loses everywhere (normal, or exponential: as skewed as it gets), and what a seed
loses at a window (the interaction, correlated like the windows). Their strengths are those of their means, so that the
length changes nothing else.

The first table gives the share of intervals that hold the truth and their mean half-width by the true standard error
(1.96 would do if all variances were known). One seed's interval is over windows alone: that is why one seed has no
verdict. In the second, seeds are added until the interval is as short as was asked for (`next_seeds`). In the third
each seed has held out a fold of its own: to the seed and the mean of its windows, both of standard deviation 1, comes
what all windows of a fold have in common.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from benchmarks.records import recording
from modules.measurement.noise import next_seeds, noise_of
from modules.measurement.report import table

WINDOWS = 3_840
LENGTHS = (0, 25, 200)
SEEDS = (1, 2, 3, 5, 8)
# Standard deviations of the means: of windows, of a seed and its law, of a seed's interaction.
MODELS = {
    "windows": (1, 0, "normal", 0),
    "seeds": (0.1, 1, "normal", 0),
    "skewed seeds": (0.1, 1, "exponential", 0),
    "windows and seeds": (1, 2, "normal", 0),
    "windows and skewed seeds": (1, 2, "exponential", 0),
    "all, most of it interaction": (1, 1, "normal", 2),
    "the same, skewed seeds": (1, 1, "exponential", 2),
    "windows and interaction": (1, 0, "normal", 2),
}
STOPPED = ("seeds", "skewed seeds", "windows and seeds", "windows and skewed seeds")
ENOUGH = (6, 10, 16)  # seeds that the half-widths asked for take, with known variances
MOST, STOPPED_WINDOWS = 40, 480
FOLDED = (3, 5, 10)  # seeds with a fold each
FOLD_SDS = (0, 1, 3)  # standard deviation of a fold by that of the mean of its windows
AT_ONCE = 50  # measurements, some 300 MB


def correlated(random: np.random.Generator, n: int, length: float, windows: int) -> np.ndarray:
    """Autoregressions whose means have a variance of 1. [n, windows]"""
    series = random.standard_normal((windows, n), dtype=np.float32)
    correlation = math.exp(-1 / length) if length else 0.0
    if length:
        series[1:] *= math.sqrt(1 - correlation**2)
        for i in range(1, windows):
            series[i] += np.float32(correlation) * series[i - 1]
    lags = np.arange(1, windows)
    return series.T * np.float32(windows / math.sqrt(windows + 2 * np.sum((windows - lags) * correlation**lags)))


def simulated(model: str, length: int, n_seeds: int, runs: int, windows: int = WINDOWS) -> Iterator[np.ndarray]:
    """`runs` measurements whose truth is 0. Each [seeds, windows]"""
    windows_sd, seeds_sd, law, interaction_sd = MODELS[model]
    random = np.random.default_rng([list(MODELS).index(model), length, n_seeds])
    for start in range(0, runs, AT_ONCE):
        n = min(AT_ONCE, runs - start)
        of_seeds = seeds_sd * drawn(random, law, (n, n_seeds, 1))
        parts = windows_sd * correlated(random, n, length, windows)[:, None] + of_seeds
        if interaction_sd:
            parts = parts + interaction_sd * correlated(random, n * n_seeds, length, windows).reshape(
                n, n_seeds, windows
            )
        yield from parts


def drawn(random: np.random.Generator, law: str, size: tuple[int, ...]) -> np.ndarray:
    """What seeds lose everywhere, of mean 0 and standard deviation 1."""
    return random.standard_normal(size) if law == "normal" else random.exponential(size=size) - 1


def true_se(model: str, n_seeds: int) -> float:
    windows_sd, seeds_sd, _, interaction_sd = MODELS[model]
    return math.sqrt(windows_sd**2 + (seeds_sd**2 + interaction_sd**2) / n_seeds)


def coverage(model: str, length: int, n_seeds: int, runs: int, windows: int = WINDOWS) -> tuple[float, float]:
    """Share of intervals that hold the truth, and their mean half-width by the true standard error."""
    return judged(simulated(model, length, n_seeds, runs, windows), true_se(model, n_seeds))


def judged(measurements: Iterable[np.ndarray], se: float, folds: bool = False) -> tuple[float, float]:
    """`coverage` of measurements [seeds, windows] whose truth is 0 and whose true standard error is `se`."""
    reached = [(abs(parts.mean()), noise_of(parts, folds=folds).half_width) for parts in measurements]
    values, half_widths = np.array(reached).T
    return float(np.mean(values <= half_widths)), float(half_widths.mean() / se)


def stopped(model: str, half_width: float, runs: int) -> tuple[float, float]:
    """Share of intervals that hold the truth where seeds are added until they are that short, and the mean number of
    seeds."""
    found = []
    for parts in simulated(model, 0, MOST, runs, STOPPED_WINDOWS):
        n, noise = 2, noise_of(parts[:2])
        while (following := next_seeds(noise, half_width, MOST)) > n:
            n, noise = following, noise_of(parts[:following])
        found.append((abs(parts[:n].mean()) <= noise.half_width, n))
    return tuple(np.mean(found, axis=0))


def coverage_table(runs: int, models: Sequence[str] = tuple(MODELS)) -> str:
    rows = []
    for model in models:
        for length in LENGTHS:
            found = [coverage(model, length, n_seeds, runs) for n_seeds in SEEDS]
            rows.append([model, length, *in_cells(found)])
    return table(["noise", "correlation length", *(f"{n} seed{'s' * (n > 1)}" for n in SEEDS)], rows)


def in_cells(found: Sequence[tuple[float, float]]) -> list[str]:
    return [f"{100 * share:.1f} % ({width:.2f})" for share, width in found]


def stopping_table(runs: int) -> str:
    rows = []
    for model in STOPPED:
        found = [stopped(model, 1.96 * true_se(model, n), runs) for n in ENOUGH]
        rows.append([model, *(f"{100 * share:.1f} % ({seeds:.1f} seeds)" for share, seeds in found)])
    return table(["noise", *(f"half-width of {n} seeds" for n in ENOUGH)], rows)


def folds_table(runs: int) -> str:
    rows = []
    for law in ("normal", "exponential"):
        for fold_sd in FOLD_SDS:
            for length in LENGTHS:
                found = [coverage_of_folds(law, fold_sd, length, n_seeds, runs) for n_seeds in FOLDED]
                rows.append([law, fold_sd, length, *in_cells(found)])
    return table(["seeds", "folds", "correlation length", *(f"{n} seeds" for n in FOLDED)], rows)


def coverage_of_folds(law: str, fold_sd: float, length: int, n_seeds: int, runs: int) -> tuple[float, float]:
    """As `coverage`, of seeds of standard deviation 1 with a fold each."""
    random, size = np.random.default_rng([length, n_seeds]), (n_seeds, 1)
    measurements = (
        drawn(random, law, size)
        + fold_sd * random.standard_normal(size)
        + correlated(random, n_seeds, length, STOPPED_WINDOWS)
        for _ in range(runs)
    )
    return judged(measurements, math.sqrt((2 + fold_sd**2) / n_seeds), folds=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4_000, help="simulated measurements a cell (default %(default)s)")
    args = parser.parse_args()
    with recording("coverage"):
        for title, of in (
            ("Coverage of the truth (half-width by the true standard error)", coverage_table),
            ("Seeds until the interval is short enough", stopping_table),
            ("Seeds with a fold each", folds_table),
        ):
            start = time.process_time()
            print(f"## {title}\n\n{of(args.runs)}\n\n{time.process_time() - start:.0f} s on one core.\n", flush=True)


if __name__ == "__main__":
    main()
