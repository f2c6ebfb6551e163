"""The statistics of the arrow against brute force, textbook cases and simulated data of known truth."""
import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules import arrow


def losses(n_seeds=2, n_windows=40, n_tokens=8, gap=0.05, seed=0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    forward = random.gamma(4, 1, size=(n_seeds, n_windows, n_tokens))
    return forward, forward + gap + 0.3 * random.standard_normal(forward.shape)


def ar1(n_series: int, n: int, correlation: float, seed: int) -> np.ndarray:
    """Stationary autoregressions of mean 0 and variance 1. [n_series, n]"""
    random = np.random.default_rng(seed)
    series = random.standard_normal((n_series, n))
    for i in range(1, n):
        series[:, i] = correlation * series[:, i - 1] + math.sqrt(1 - correlation**2) * series[:, i]
    return series


def test_means_of_a_case_small_enough_to_do_by_hand():
    forward, backward = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 6.0]]), np.array([[2.0, 3.0], [2.0, 5.0], [4.0, 9.0]])
    found = arrow.measure(forward, backward)
    assert found.forward == pytest.approx(18 / 6) and found.backward == pytest.approx(25 / 6)
    assert found.nats.value == pytest.approx(7 / 6) and found.percent.value == pytest.approx(100 * 7 / 18)
    # differences of the windows: 0.5, 1.5, 1.5; their variance 1/3
    assert found.paired_se == pytest.approx(math.sqrt(1 / 3 / 3))
    assert (found.n_windows, found.n_tokens) == (3, 6) and found.nats.seeds is None and found.nats.both == found.nats.windows


def test_exchanging_the_directions_negates_the_arrow_and_its_intervals():
    forward, backward = losses()
    there, back = arrow.measure(forward, backward), arrow.measure(backward, forward)
    assert back.nats.value == pytest.approx(-there.nats.value)
    for name in ("windows", "seeds", "both"):
        assert getattr(back.nats, name) == pytest.approx([-end for end in reversed(getattr(there.nats, name))])


def test_equal_losses_have_no_arrow_and_say_so():
    forward, _ = losses()
    found = arrow.measure(forward, forward)
    assert found.nats.value == 0 and found.nats.both == (0, 0) and "No arrow" in found.verdict


@pytest.mark.parametrize("gap, words", [(0.2, "Backward is harder"), (-0.2, "Forward is harder"), (0.0, "No arrow")])
def test_verdict_follows_the_interval(gap, words):
    assert arrow.measure(*losses(gap=gap, n_windows=400)).verdict.startswith(words)
    one_seed = arrow.measure(*losses(gap=gap, n_windows=400, n_seeds=1)).verdict
    assert one_seed.startswith(words) and "One seed" in one_seed


def test_wide_spread_between_seeds_widens_the_quoted_interval_beyond_that_of_windows():
    forward, backward = losses(n_seeds=3, n_windows=500, gap=0.1)
    backward += np.array([-0.2, 0.0, 0.2])[:, None, None]
    found = arrow.measure(forward, backward)
    assert found.nats.windows[0] > 0 > found.nats.both[0] and "No arrow" in found.verdict
    # The seeds' arrows are 0.1 - 0.2, 0.1, 0.1 + 0.2: Student's t with two degrees of freedom, from its table.
    assert found.nats.seeds[1] - found.nats.value == pytest.approx(4.3027 * 0.2 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("df, quantile", [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1e9, 1.9600)])
def test_t_quantile_is_that_of_the_tables(df, quantile):
    assert arrow.t_quantile(df) == pytest.approx(quantile, abs=4e-4)


@given(df=st.floats(1, 500), level=st.floats(0.5, 0.99))
@settings(max_examples=20, deadline=None)
def test_t_quantile_against_simulated_t(df, level):
    """A t is a normal over the root of a chi-square by its degrees of freedom, whatever real number these are."""
    random = np.random.default_rng(0)
    simulated = random.standard_normal(100_000) / np.sqrt(random.chisquare(df, 100_000) / df)
    assert np.mean(np.abs(simulated) < arrow.t_quantile(df, level)) == pytest.approx(level, abs=0.006)


@pytest.mark.parametrize("n, block", [(7, 3), (6, 2), (5, 1), (4, 4)])
def test_bootstrap_has_the_law_of_the_brute_force_bootstrap(n, block):
    """Every possible resample of a short series, written out index by index."""
    series = np.random.default_rng(n).standard_normal((n, 2))
    lengths = [block] * (n // block) + ([n % block] if n % block else [])
    exact = np.array([series[[(start + i) % n for start, length in zip(starts, lengths, strict=True) for i in range(length)]].mean(axis=0)
                      for starts in itertools.product(range(n), repeat=len(lengths))])
    found = arrow.bootstrap_means(series, block, resamples=60_000, seed=1)
    assert np.allclose(found.mean(axis=0), exact.mean(axis=0), atol=0.01)
    assert np.allclose(np.cov(found.T), np.cov(exact.T, bias=True), atol=0.01)
    assert set(found[:, 0].round(9)) <= set(exact[:, 0].round(9))


def test_bootstrap_is_seeded_and_its_batching_is_invisible(monkeypatch):
    series = np.random.default_rng(0).standard_normal((100, 1))
    whole = arrow.bootstrap_means(series, 3, 1_000, seed=5)
    assert np.array_equal(whole, arrow.bootstrap_means(series, 3, 1_000, seed=5))
    monkeypatch.setattr(arrow, "NUMBERS_AT_ONCE", 1_000)
    in_parts = arrow.bootstrap_means(series, 3, 1_000, seed=5)
    assert in_parts.shape == whole.shape and in_parts.std() == pytest.approx(whole.std(), rel=0.1)


@pytest.mark.parametrize("correlation", [0.3, 0.5, 0.8])
def test_block_length_of_an_autoregression_is_near_its_theory(correlation):
    """For an AR(1), g / spectrum = 2 r / (1 - r²) / ... gives the length (6 (r / (1 - r²))² n)^(1/3) in closed form."""
    n = 4_000
    theory = (6 * (correlation / (1 - correlation**2)) ** 2 * n) ** (1 / 3)
    found = np.mean([arrow.block_length(series) for series in ar1(40, n, correlation, seed=1)])
    assert found == pytest.approx(theory, rel=0.2)


def test_independent_windows_are_resampled_singly_and_the_interval_is_the_textbook_one():
    series = np.random.default_rng(2).standard_normal(3_000)
    assert arrow.block_length(series) == 1
    found = arrow.measure(np.ones((3_000, 1)), 1 + series[:, None])
    half = NormalDist().inv_cdf(0.975) * series.std(ddof=1) / math.sqrt(3_000)
    assert found.nats.windows == pytest.approx((series.mean() - half, series.mean() + half), abs=0.05 * half)


@pytest.mark.parametrize("correlation, least", [(0.0, 0.91), (0.5, 0.89)])
def test_intervals_over_windows_cover_the_truth_as_often_as_they_say(correlation, least):
    """300 held-out texts whose true arrow is 0.1. Intervals for independent windows would cover 75 % at a correlation of 0.5."""
    covered = 0
    for seed, series in enumerate(ar1(300, 600, correlation, seed=7)):
        low, high = arrow.measure(np.full((600, 1), 3.0), 3.1 + series[:, None], resamples=400, seed=seed).nats.windows
        covered += low < 0.1 < high
    assert least <= covered / 300 <= 0.985


@pytest.mark.parametrize("window_noise, seed_noise", [(1.0, 0.0), (0.3, 0.02), (0.1, 0.1)])
def test_intervals_over_both_cover_the_truth_as_often_as_they_say(window_noise, seed_noise):
    """Three seeds whose models differ by `seed_noise`, on windows that differ by `window_noise`."""
    random, covered = np.random.default_rng(3), 0
    for _ in range(300):
        difference = 0.1 + window_noise * random.standard_normal((1, 200, 1)) + seed_noise * random.standard_normal((3, 1, 1))
        difference = difference + 0.05 * random.standard_normal((3, 200, 1))
        low, high = arrow.measure(np.full(difference.shape, 3.0), 3 + difference, resamples=300).nats.both
        covered += low < 0.1 < high
    assert 0.91 <= covered / 300 <= 0.995


@given(seed=st.integers(0, 1_000), n_tokens=st.integers(1, 9))
@settings(deadline=None)
def test_by_context_compares_equal_knowledge_and_adds_up_to_the_arrow(seed, n_tokens):
    forward, backward = losses(n_tokens=n_tokens, seed=seed)
    curve = arrow.by_context(forward, backward)
    assert curve["arrow"].mean() == pytest.approx(arrow.measure(forward, backward, resamples=10).nats.value)
    for seen in range(n_tokens):
        # After `seen` tokens, the forward model meets number `seen` from the left, the backward model number `seen` from the right.
        assert curve["forward"][seen] == pytest.approx(forward[:, :, seen].mean())
        assert curve["backward"][seen] == pytest.approx(backward[:, :, n_tokens - 1 - seen].mean())


def test_by_context_standard_error_is_the_spread_over_texts():
    curves = [arrow.by_context(*losses(n_windows=200, seed=seed)) for seed in range(200)]
    spread = np.std([curve["arrow"] for curve in curves], axis=0)
    assert np.mean([curve["arrow_se"] for curve in curves], axis=0) == pytest.approx(spread, rel=0.25)


def test_by_class_adds_up_and_its_standard_error_is_the_spread_over_texts():
    rows_of = []
    for seed in range(200):
        forward, backward = losses(n_windows=100, seed=seed)
        classes = np.random.default_rng(seed + 10_000).choice(3, size=forward.shape[1:], p=[0.7, 0.3, 0.0])
        backward[:, classes == 1] += 0.5
        rows = arrow.by_class(forward, backward, classes, ["plain", "hard", "absent"])
        assert [row["name"] for row in rows] == ["plain", "hard"] and sum(row["tokens"] for row in rows) == classes.size
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert rows[1]["arrow"] == pytest.approx((backward - forward).mean(axis=0)[classes == 1].mean())
        rows_of.append([(row["arrow"], row["arrow_se"]) for row in rows])
    rows_of = np.array(rows_of)
    assert rows_of[:, :, 1].mean(axis=0) == pytest.approx(rows_of[:, :, 0].std(axis=0), rel=0.25)


def test_units():
    assert arrow.perplexity(math.log(50_257)) == pytest.approx(50_257)
    assert arrow.bits_per_byte(math.log(256), bytes_per_token=1) == pytest.approx(8)  # a random byte
    assert arrow.bits_per_byte(4 * math.log(2), bytes_per_token=4) == pytest.approx(1)


@pytest.mark.parametrize("forward, backward", [(np.ones((3, 4)), np.ones((3, 5))), (np.ones((1, 4)), np.ones((1, 4))),
                                               (np.ones(4), np.ones(4)), (np.ones((3, 4)), np.full((3, 4), np.nan))])
def test_what_cannot_be_compared_is_refused(forward, backward):
    with pytest.raises(ValueError, match="expected"):
        arrow.measure(forward, backward)
