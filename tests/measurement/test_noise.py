"""The noise of a mean over seeds and windows: against formulas written out, simulation, and what must not change it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import coverage
from modules.measurement import noise
from modules.measurement.noise import Noise, cosines, estimate, flat_cosines, noise_of, t_outside, t_quantile


def ar1(n_series: int, n: int, length: float, seed: int) -> np.ndarray:
    """Stationary autoregressions of mean 0 and variance 1, with correlations exp(-distance / length). [n_series, n]"""
    random, correlation = np.random.default_rng(seed), math.exp(-1 / length)
    series = random.standard_normal((n_series, n))
    for i in range(1, n):
        series[:, i] = correlation * series[:, i - 1] + math.sqrt(1 - correlation**2) * series[:, i]
    return series


def some_parts(seed: int, n_seeds: int = 3, n_windows: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((n_seeds, 1))
        + random.standard_normal(n_windows)
        + random.standard_normal((n_seeds, n_windows))
    )


# Student's t
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "df, quantile", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1e9, 1.9600)]
)
def test_t_quantile_is_that_of_the_tables(df, quantile):
    assert t_quantile(df) == pytest.approx(quantile, abs=4e-4)
    assert t_outside(quantile, df) == pytest.approx(0.05, abs=4e-5)


def test_t_far_outside_has_its_closed_forms():
    for t in (0.5, 10, 1e6):
        assert t_outside(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert t_outside(t, 2) == pytest.approx(
            2 / (2 + t**2 + t * math.sqrt(2 + t**2)), rel=1e-9
        )  # 1 - t / sqrt(2 + t²)


@given(df=st.floats(1, 500), level=st.floats(0.5, 0.99))
@settings(max_examples=20, deadline=None)
def test_t_quantile_against_simulated_t(df, level):
    """A t is a normal over the root of a chi-square by its degrees of freedom, whatever real number these are."""
    random = np.random.default_rng(0)
    simulated = random.standard_normal(100_000) / np.sqrt(random.chisquare(df, 100_000) / df)
    assert np.mean(np.abs(simulated) < t_quantile(df, level)) == pytest.approx(level, abs=0.006)


# Variances
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 7, 50])
def test_cosines_are_the_orthonormal_ones(n):
    series = np.random.default_rng(n).standard_normal((2, n))
    written_out = [
        [
            math.sqrt(2 / n) * sum(x * math.cos(math.pi * k * (t + 0.5) / n) for t, x in enumerate(row))
            for k in range(1, n)
        ]
        for row in series
    ]
    assert np.allclose(cosines(series, n - 1), written_out)


def test_three_windows_by_hand():
    """Differences of 1, 3 and 2: coefficients sqrt(2/3) (1 - 2) cos 30° and sqrt(2/3) (1/2 - 3 + 1)."""
    squares = [2 / 3 * 3 / 4, 2 / 3 * 9 / 4]
    found = noise_of(np.array([[1.0, 3.0, 2.0]]))
    assert found.windows_df == 2 and found.windows == pytest.approx(
        np.mean(squares) / 3, rel=0.1
    )  # but for the fitted spectrum
    assert noise_of(np.array([[1.0, 3.0, 2.0]]), block=1).windows == pytest.approx(np.mean(squares) / 3)


@given(seed=st.integers(0, 1_000), n_documents=st.integers(2, 8))
@settings(deadline=None, max_examples=30)
def test_documents_vary_as_wholes(seed, n_documents):
    random, parts = np.random.default_rng(seed), some_parts(seed)
    documents = np.concatenate([np.arange(n_documents), random.integers(n_documents, size=60 - n_documents)])
    found = noise_of(parts, documents=documents)
    mean_W = parts.mean(axis=0)
    sums = [sum(mean_W[documents == d] - mean_W.mean()) for d in range(n_documents)]
    assert found.windows == pytest.approx(n_documents / (n_documents - 1) * sum(np.square(sums)) / 60**2)
    shuffled = random.permutation(60)  # where a document stands, and what it is called, is nothing to it
    again = noise_of(parts[:, shuffled], documents=np.array([f"document {d}" for d in documents])[shuffled])
    assert np.allclose(
        [again.seeds, again.windows, again.interaction, again.windows_df],
        [found.seeds, found.windows, found.interaction, found.windows_df],
    )


def test_documents_of_equal_length_have_one_degree_less_than_their_number_and_a_long_one_leaves_few():
    parts = some_parts(0)
    assert noise_of(parts, documents=np.arange(60) // 10).windows_df == pytest.approx(5)
    assert noise_of(parts, documents=np.maximum(np.arange(60) - 49, 0)).windows_df == 1


def test_documents_or_blocks_that_say_nothing_are_refused():
    for options in ({"documents": np.zeros(60)}, {"documents": np.arange(59)}, {"block": 0}):
        with pytest.raises(ValueError, match="expected"):
            noise_of(some_parts(0), **options)


@given(seed=st.integers(0, 1_000), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=30)
def test_what_must_not_change_the_noise_does_not(seed, scale, shift):
    parts = some_parts(seed)
    found = noise_of(parts)
    for same in (
        parts + shift,
        -parts,
        parts[::-1],
        parts[:, ::-1],
    ):  # another level, sign, order of seeds, text from its end
        assert np.allclose(list(vars(noise_of(same)).values()), list(vars(found).values()), rtol=1e-6)
    assert noise_of(scale * parts).se == pytest.approx(scale * found.se)


def test_the_three_variances_are_those_that_were_put_in():
    """3 seeds (variance 4), windows whose mean has 1, interaction whose mean has 2 in each seed."""
    random, found = np.random.default_rng(0), []
    for _ in range(1_500):
        windows, interaction = (
            random.standard_normal(200) * math.sqrt(200),
            random.standard_normal((3, 200)) * math.sqrt(200),
        )
        each = noise_of(2 * random.standard_normal((3, 1)) + windows + math.sqrt(2) * interaction, block=10)
        found.append([each.seeds, each.windows, each.interaction, each.seeds + each.windows - each.interaction])
    assert np.mean(found, axis=0) == pytest.approx([(4 + 2) / 3, 1 + 2 / 3, 2 / 3, 4 / 3 + 1 + 2 / 3], rel=0.06)


def test_interaction_is_counted_once_and_never_less_than_the_windows():
    assert Noise(5.0, 3.0, 2.0, 4, 10).variance == 6.0
    assert Noise(1.0, 3.0, 2.0, 4, 10).variance == 3.0


def test_quantiles_are_weighted_by_their_variances():
    """Windows alone: Student's t of 10 degrees of freedom. Seeds alone: of 4, at 96.7 %. Both alike: half, a quarter, a
    quarter."""
    assert Noise(1.0, 3.0, 1.0, 4, 10).critical() == pytest.approx(2.2281, abs=1e-4)
    assert 2.7764 < Noise(1.0, 0.0, 0.0, 4, 10).critical() == pytest.approx(t_quantile(4, 1 - 0.1 / 3))
    assert Noise(1.0, 1.0, 0.0, 4, 10).critical() == pytest.approx(
        2.2281 / 2 + 2.7764 / 4 + t_quantile(4, 1 - 0.1 / 3) / 4, abs=1e-4
    )


# Correlated windows
# -----------------------------------------------------------------------------------------------------


def test_cosines_are_many_for_independent_windows_and_as_few_as_their_correlation_asks():
    def numbers(series):
        return [flat_cosines(each)[0] for each in series]

    assert np.median(numbers(ar1(60, 3_840, 0.1, seed=1))) == 48
    assert np.median(numbers(ar1(60, 3_840, 100, seed=3))) <= 8
    # The mean of 1 / (1 + (pi L k / n)²) up to k is 90 % where pi L k / n is 0.6.
    assert np.median(numbers(ar1(60, 3_840, 25, seed=2))) == pytest.approx(0.6 * 3_840 / (math.pi * 25), rel=0.3)


@pytest.mark.parametrize("share, length", [(0.0, 1), (1.0, 25), (0.1, 200), (0.01, 200)])
def test_variance_of_the_mean_also_where_correlations_are_weak_and_long(share, length):
    """A share of 1 % that lasts 200 windows is seen at no lag, and makes the variance of the mean five times what
    single windows say."""
    series = math.sqrt(share) * ar1(150, 3_840, length, seed=4) + math.sqrt(1 - share) * np.random.default_rng(
        5
    ).standard_normal((150, 3_840))
    truth = (1 - share) / 3_840 + share * series_variance(length, 3_840)
    assert np.mean([noise_of(each[None]).windows for each in series]) == pytest.approx(truth, rel=0.25)


def series_variance(length: float, n: int) -> float:
    """Of the mean of n entries with correlations exp(-distance / length)."""
    lags = np.arange(1 - n, n)
    return float(np.sum((n - np.abs(lags)) * np.exp(-np.abs(lags) / length)) / n**2)


@pytest.mark.parametrize("block, number", [(1, 245), (16, 240), (100, 38), (3_840, 1), (10_000, 1)])
def test_a_given_block_says_how_many_windows_count_as_one(block, number):
    series = np.random.default_rng(0).standard_normal((1, 3_840))
    found = noise_of(series, block=block)
    assert found.windows_df == number  # at least n^(1/3) windows in each
    assert found.windows == pytest.approx(np.mean(cosines(series, number) ** 2) / 3_840)


def test_equal_windows_have_no_noise():
    found = estimate(0.0, noise_of(np.ones((3, 50))))
    assert found.both == (0, 0) and found.se == 0 and found.p == 1
    assert estimate(1.0, noise_of(np.ones((3, 50)))).p == 0


# What the intervals hold
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, length, n_seeds, least, most",
    [
        ("windows", 0, 3, 0.93, 0.98),
        ("windows", 20, 3, 0.92, 0.98),
        ("seeds", 0, 2, 0.93, 0.98),
        ("seeds", 0, 5, 0.93, 0.98),
        ("skewed seeds", 0, 3, 0.89, 0.95),
        ("skewed seeds", 0, 8, 0.90, 0.95),
        ("windows and seeds", 20, 2, 0.93, 0.99),
        ("windows and seeds", 20, 5, 0.93, 0.98),
        ("all, most of it interaction", 0, 3, 0.93, 0.98),
        ("windows and interaction", 0, 2, 0.93, 0.98),
    ],
)
def test_intervals_cover_the_truth(model, length, n_seeds, least, most):
    """A small version of benchmarks/coverage.py; 800 measurements leave a standard error of 0.008."""
    share, width = coverage.coverage(model, length, n_seeds, runs=800, windows=480)
    assert least <= share <= most and width > 1.96


def test_one_seed_has_an_interval_over_windows_only_and_no_p_value():
    found = estimate(1.0, noise_of(some_parts(0, n_seeds=1)))
    assert found.seeds is None and found.p is None and found.detectable is None and found.both == found.windows


@given(seed=st.integers(0, 1_000), value=st.floats(-3, 3))
@settings(deadline=None, max_examples=15)
def test_p_value_is_the_level_at_which_zero_leaves_the_interval(seed, value):
    each = noise_of(some_parts(seed))
    found = estimate(value, each)
    assert (found.p < 0.05) == (not found.both[0] <= 0 <= found.both[1])
    if found.p < 1:
        assert each.critical(1 - found.p) * each.se == pytest.approx(abs(value), rel=1e-4, abs=1e-6)
    assert estimate(-value, each).p == found.p


def test_p_value_with_nothing_but_windows_is_students():
    assert Noise(0.0, 4.0, 0.0, 0, 9).p_value(4.0) == pytest.approx(t_outside(2, 9))


@pytest.mark.parametrize("model, n_seeds", [("windows", 3), ("seeds", 5), ("windows and seeds", 5)])
def test_the_detectable_value_is_found_four_times_in_five(model, n_seeds):
    all_of_them = list(coverage.simulated(model, 0, n_seeds, 600, windows=480))
    noises = [noise_of(parts) for parts in all_of_them]
    shift = np.sqrt(np.mean(np.square([each.detectable for each in noises])))
    found = [abs(parts.mean() + shift) > each.half_width for parts, each in zip(all_of_them, noises, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_the_benchmark_prints_a_row_for_each_noise_and_length():
    header, _, *rows = coverage.coverage_table(2, ["seeds"]).splitlines()
    assert header.count("|") == 3 + len(coverage.SEEDS) and len(rows) == len(coverage.LENGTHS)
    assert all(row.startswith(f"| seeds | {length} | ") for row, length in zip(rows, coverage.LENGTHS, strict=True))


# How many seeds
# ---------------------------------------------------------------------------------------------------------


def test_noise_of_other_numbers_of_seeds():
    three = Noise(seeds=6.0, windows=3.0, interaction=2.0, seeds_df=2, windows_df=12)
    assert three.with_seeds(3) == three
    twelve = three.with_seeds(12)
    assert (twelve.seeds, twelve.interaction, twelve.windows, twelve.seeds_df) == (1.5, 0.5, 1.5, 11)
    assert three.with_seeds(10**9).variance == pytest.approx(three.text) == pytest.approx(1.0)


@given(seeds=st.floats(0.1, 10), windows=st.floats(0.001, 1), half_width=st.floats(0.5, 5))
@settings(deadline=None, max_examples=30)
def test_seeds_needed_is_the_smallest_number_that_suffices(seeds, windows, half_width):
    each = Noise(seeds, windows, 0.0, 4, 20)
    needed = noise.seeds_needed(each, half_width, most=50)
    widths = [each.with_seeds(n).half_width for n in range(2, 51)]
    assert needed == next((n for n, width in enumerate(widths, 2) if width <= half_width), None)


def test_where_text_is_what_lacks_no_number_of_seeds_suffices_and_the_text_that_does_is_told():
    each = Noise(seeds=0.2, windows=1.0, interaction=0.1, seeds_df=4, windows_df=48)
    assert noise.seeds_needed(each, 0.5) is None
    times = noise.text_needed(each, 0.5)
    more_text = replace(each, windows=each.windows / times, interaction=each.interaction / times)
    assert t_quantile(48) * math.sqrt(more_text.text) == pytest.approx(0.5 / math.sqrt(2))
    assert noise.seeds_needed(more_text, 0.5) is not None


def test_one_seed_does_not_say_how_many_are_needed():
    with pytest.raises(ValueError, match="expected at least two seeds"):
        noise.seeds_needed(noise_of(some_parts(0, n_seeds=1)), 0.1)


def test_seeds_are_added_until_the_interval_is_short_enough():
    each = Noise(seeds=1.0, windows=0.01, interaction=0.0, seeds_df=2, windows_df=48)
    assert noise.next_seeds(each, 100.0, most=40) == noise.FIRST_SEEDS  # three that agree are not believed
    assert noise.next_seeds(each, 0.5, most=4) == 4
    assert noise.next_seeds(replace(each, seeds_df=3), 0.5, most=4) == 4  # no more to be had
    eight = replace(each, seeds_df=7)
    assert noise.next_seeds(eight, eight.half_width, most=40) == 8  # short enough
    assert noise.next_seeds(eight, 1.0, most=40) == (8 + noise.seeds_needed(eight, 1.0)) // 2 > 9  # half of the way
    assert noise.next_seeds(eight, 1.0, most=9) == 9
    assert noise.next_seeds(replace(eight, seeds_df=8), 1.0, most=9) == 9
    assert noise.next_seeds(replace(eight, windows=1.0), 0.5, most=40) == 8  # more seeds would not help


@pytest.mark.parametrize("model, least", [("seeds", 0.93), ("skewed seeds", 0.89)])
def test_stopping_leaves_the_coverage_right(model, least):
    share, seeds = coverage.stopped(model, 1.96 * coverage.true_se(model, 10), runs=300)
    assert share >= least and 10 < seeds < 16
