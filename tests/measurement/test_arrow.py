"""The statistics of the arrow against brute force, textbook cases and simulated data of known truth."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.measurement import arrow, noise


def losses(n_seeds=2, n_windows=40, n_tokens=8, gap=0.05, seed=0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    forward = random.gamma(4, 1, size=(n_seeds, n_windows, n_tokens))
    return forward, forward + gap + 0.3 * random.standard_normal(forward.shape)


def test_means_of_a_case_small_enough_to_do_by_hand():
    forward, backward = np.array([[1.0, 3.0], [2.0, 2.0], [4.0, 6.0]]), np.array([[2.0, 3.0], [2.0, 5.0], [4.0, 9.0]])
    found = arrow.measure(forward, backward)
    assert found.forward == pytest.approx(18 / 6) and found.backward == pytest.approx(25 / 6)
    assert found.nats.value == pytest.approx(7 / 6) and found.percent.value == pytest.approx(100 * 7 / 18)
    # differences of the windows: 0.5, 1.5, 1.5; their variance 1/3
    assert found.paired_se == pytest.approx(math.sqrt(1 / 3 / 3))
    assert (
        (found.n_windows, found.n_tokens) == (3, 6)
        and found.nats.seeds is None
        and found.nats.both == found.nats.windows
    )


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


def test_one_seed_has_no_direction():
    found = arrow.measure(*losses(gap=0.2, n_windows=400, n_seeds=1))
    assert found.nats.both[0] > 0 and found.verdict == (
        f"One seed: these two models differ by {found.percent.value:.2f} %; "
        "at least 3 seeds (5 are the default) tell whether the text does."
    )
    assert found.percent.p is None and found.seeds_sd is None


def test_wide_spread_between_seeds_widens_the_quoted_interval_beyond_that_of_windows():
    forward, backward = losses(n_seeds=3, n_windows=500, gap=0.1)
    backward += np.array([-0.2, 0.0, 0.2])[:, None, None]
    found = arrow.measure(forward, backward)
    assert found.nats.windows[0] > 0 > found.nats.both[0] and "No arrow" in found.verdict
    # The seeds' arrows are 0.1 - 0.2, 0.1, 0.1 + 0.2: Student's t with two degrees of freedom, from its table.
    assert found.nats.seeds[1] - found.nats.value == pytest.approx(4.3027 * 0.2 / math.sqrt(3), rel=0.05)


def test_windows_that_are_independent_have_the_textbook_interval():
    series = np.random.default_rng(2).standard_normal(3_000)
    found = arrow.measure(np.ones((3_000, 1)), 1 + series[:, None], block=16)
    half = NormalDist().inv_cdf(0.975) * series.std(ddof=1) / math.sqrt(3_000)
    assert found.nats.windows == pytest.approx((series.mean() - half, series.mean() + half), abs=0.15 * half)
    assert found.paired_se == pytest.approx(series.std(ddof=1) / math.sqrt(3_000)) and found.block == 16


@pytest.mark.parametrize("kind", ["windows", "seeds", "both"])
def test_percent_is_the_arrow_by_the_forward_loss_and_so_is_its_interval_where_the_loss_is_known_well(kind):
    forward, backward = losses(n_seeds=4, n_windows=300)
    forward, backward = (10 + (each - forward.mean(axis=2, keepdims=True)) for each in (forward, backward))
    found = arrow.measure(forward, backward)
    assert found.percent.value == pytest.approx(100 * found.nats.value / found.forward)
    assert getattr(found.percent, kind) == pytest.approx([10 * end for end in getattr(found.nats, kind)], rel=0.01)


@given(scale=st.floats(0.1, 10))
@settings(deadline=None, max_examples=10)
def test_percents_do_not_know_the_unit_of_the_losses(scale):
    forward, backward = losses()
    there, here = arrow.measure(forward, backward), arrow.measure(scale * forward, scale * backward)
    assert here.percent.both == pytest.approx(there.percent.both) and here.percent.p == pytest.approx(there.percent.p)
    assert here.nats.se == pytest.approx(scale * there.nats.se)


def test_losses_by_window_alone_give_the_same_arrow():
    forward, backward = losses(n_seeds=3)
    whole, by_window = (
        arrow.measure(forward, backward),
        arrow.measure(*(each.mean(axis=2)[..., None] for each in (forward, backward))),
    )
    assert by_window.nats.value == pytest.approx(whole.nats.value) and by_window.percent.both == pytest.approx(
        whole.percent.both
    )


def test_documents_widen_the_interval_where_the_arrow_is_one_of_documents():
    random = np.random.default_rng(0)
    documents = np.repeat(np.arange(20), 30)[
        random.permutation(600)
    ]  # their windows stand anywhere: only their ids tell
    forward = np.full((600, 1), 3.0)
    backward = forward + (random.standard_normal(20)[documents] + 0.1 * random.standard_normal(600))[:, None]
    blind, seeing = arrow.measure(forward, backward), arrow.measure(forward, backward, documents=documents)
    assert seeing.nats.se > 3 * blind.nats.se and seeing.block == 30
    assert seeing.nats.se == pytest.approx(1 / math.sqrt(20), rel=0.35)


def test_outlook_says_what_could_have_been_found_and_what_is_lacking():
    wide = arrow.measure(*losses(n_seeds=3, n_windows=400))
    assert f"{wide.seeds_sd:.2f} %" in wide.outlook and f"{wide.percent.detectable:.2f} %" in wide.outlook
    assert wide.seeds_sd == pytest.approx(np.std([one.percent for one in wide.per_seed], ddof=1))
    assert "is within ±50 %" in arrow.outlook(wide.percent, wide.seeds_sd, 50)
    hopeless = arrow.outlook(wide.percent, wide.seeds_sd, 0.001)
    assert "not to be had by seeds alone" in hopeless and "times the held-out text" in hopeless
    forward, backward = losses(n_seeds=3, n_windows=400)
    by_seed = arrow.measure(forward, backward + np.array([-0.2, 0.0, 0.2])[:, None, None])
    half_width = by_seed.percent.noise.half_width / 2
    more = f"takes about {noise.seeds_needed(by_seed.percent.noise, half_width) - 3} more seeds"
    assert arrow.outlook(by_seed.percent, by_seed.seeds_sd, half_width).endswith(f"{more}.")
    of_folds = arrow.outlook(by_seed.percent, by_seed.seeds_sd, half_width, folds=True)
    assert of_folds.endswith(f"{more}, each with a fold of its own.")
    by_fold = arrow.measure(forward, backward + np.array([-0.2, 0.0, 0.2])[:, None, None], folds=True)
    assert by_fold.outlook == arrow.outlook(by_fold.percent, by_fold.seeds_sd, folds=True)
    flat = np.full((3, 50, 1), 100.0)
    apart = arrow.measure(flat, flat + np.array([-20.0, 10.0, 30.0])[:, None, None])
    assert "takes more than 1,000 seeds" in arrow.outlook(apart.percent, apart.seeds_sd, 0.1)
    assert "One seed does not say" in arrow.measure(*losses(n_seeds=1)).outlook


@given(seed=st.integers(0, 1_000), n_tokens=st.integers(1, 9))
@settings(deadline=None)
def test_by_context_compares_equal_knowledge_and_adds_up_to_the_arrow(seed, n_tokens):
    forward, backward = losses(n_tokens=n_tokens, seed=seed)
    curve = arrow.by_context(forward, backward)
    assert curve.arrow.mean() == pytest.approx(arrow.measure(forward, backward).nats.value)
    for seen in range(n_tokens):
        # After `seen` tokens, the forward model meets number `seen` from the left, the backward model number `seen`
        # from the right.
        assert curve.forward[seen] == pytest.approx(forward[:, :, seen].mean())
        assert curve.backward[seen] == pytest.approx(backward[:, :, n_tokens - 1 - seen].mean())


def test_by_context_standard_error_is_the_spread_over_texts():
    curves = [arrow.by_context(*losses(n_windows=200, seed=seed)) for seed in range(200)]
    spread = np.std([curve.arrow for curve in curves], axis=0)
    assert np.mean([curve.arrow_se for curve in curves], axis=0) == pytest.approx(spread, rel=0.25)


def test_by_class_adds_up_and_its_standard_error_is_the_spread_over_texts():
    rows_of = []
    for seed in range(200):
        forward, backward = losses(n_windows=100, seed=seed)
        classes = np.random.default_rng(seed + 10_000).choice(3, size=forward.shape[1:], p=[0.7, 0.3, 0.0])
        backward[:, classes == 1] += 0.5
        rows = arrow.by_class(forward, backward, classes, ["plain", "hard", "absent"])
        assert [row.name for row in rows] == ["plain", "hard"] and sum(row.tokens for row in rows) == classes.size
        assert sum(row.share for row in rows) == pytest.approx(1)  # of an arrow of 0.2, ten standard errors
        assert rows[1].arrow == pytest.approx((backward - forward).mean(axis=0)[classes == 1].mean())
        rows_of.append([(row.arrow, row.arrow_se) for row in rows])
    rows_of = np.array(rows_of)
    assert rows_of[:, :, 1].mean(axis=0) == pytest.approx(rows_of[:, :, 0].std(axis=0), rel=0.25)


def test_share_of_an_arrow_that_may_be_zero_is_not_told():
    forward, _ = losses(n_seeds=1, n_windows=100)
    classes = np.arange(forward[0].size).reshape(forward[0].shape) % 2
    backward = forward + np.where(classes, 1.0, -0.999) + 0.3 * np.random.default_rng(0).standard_normal(forward.shape)
    assert [row.share for row in arrow.by_class(forward, backward, classes, ["even", "odd"])] == [None, None]
    assert [row.share for row in arrow.by_class(forward, forward, classes, ["even", "odd"])] == [None, None]


@given(seed=st.integers(0, 1_000))
@settings(deadline=None, max_examples=30)
def test_by_class_of_words_knows_only_the_sum_of_a_words_losses_and_the_class_of_its_first_token(seed):
    random = np.random.default_rng(seed)
    forward, backward = losses(n_windows=12, seed=seed)
    starts = random.random((12, 8)) < 0.5
    words, classes = np.cumsum(starts.ravel()).reshape(12, 8), random.integers(3, size=(12, 8))
    rows = arrow.by_class(forward, backward, classes, ["a", "b", "c"], words)
    mean = (backward - forward).mean(axis=0)
    for index, name in enumerate("abc"):
        mine = [w for w in np.unique(words) if classes[words == w][0] == index]
        found = [row for row in rows if row.name == name]
        assert [row.tokens for row in found] == [n for n in [sum(int((words == w).sum()) for w in mine)] if n]
        for row in found:
            assert row.arrow * row.tokens == pytest.approx(sum(mean[words == w].sum() for w in mine))
    # The chain rule inside words: what moves between the tokens of a word of one window changes nothing.
    moved = backward.copy()
    for w in np.unique(words):
        places = np.argwhere(words == w)
        places = places[places[:, 0] == places[0, 0]]
        moved[:, places[0, 0], places[0, 1]] += 1
        moved[:, places[-1, 0], places[-1, 1]] -= 1
    again = arrow.by_class(forward, moved, classes, ["a", "b", "c"], words)
    assert [row.arrow for row in again] == pytest.approx([row.arrow for row in rows])


def test_units():
    assert arrow.perplexity(math.log(50_257)) == pytest.approx(50_257)
    assert arrow.bits_per_byte(math.log(256), bytes_per_token=1) == pytest.approx(8)  # a random byte
    assert arrow.bits_per_byte(4 * math.log(2), bytes_per_token=4) == pytest.approx(1)


@pytest.mark.parametrize(
    "forward, backward",
    [
        (np.ones((3, 4)), np.ones((3, 5))),
        (np.ones((1, 4)), np.ones((1, 4))),
        (np.ones(4), np.ones(4)),
        (np.ones((3, 4)), np.full((3, 4), np.nan)),
    ],
)
def test_what_cannot_be_compared_is_refused(forward, backward):
    with pytest.raises(ValueError, match="expected"):
        arrow.measure(forward, backward)


# Several arrows
# ---------------------------------------------------------------------------------------------------------------


def correlated(n_windows: int, length: float, seed: int, n_seeds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Losses whose difference is correlated over `length` windows."""
    random = np.random.default_rng(seed)
    series, last = np.empty(n_windows), 0.0
    for i, one in enumerate(random.standard_normal(n_windows)):
        last = series[i] = math.exp(-1 / length) * last + math.sqrt(1 - math.exp(-2 / length)) * one if length else one
    forward = np.full((n_seeds, n_windows, 1), 4.0)
    return forward, forward + 0.1 * series[None, :, None] + 0.01 * random.standard_normal(forward.shape)


def test_texts_of_a_sweep_share_the_longest_block_and_the_one_that_decides_keeps_its_interval():
    texts = [correlated(2_000, length, seed) for seed, length in enumerate((0, 30, 5))]
    alone = [arrow.measure(*each) for each in texts]
    tokens = arrow.shared_block(alone)
    alike = [
        arrow.measure(*each, block=arrow.block_for(found, tokens)) for each, found in zip(texts, alone, strict=True)
    ]
    assert len({each.nats.noise.windows_df for each in alike}) == 1
    deciding = int(np.argmax([each.block for each in alone]))
    assert deciding == 1 and alike[1].nats.windows == pytest.approx(alone[1].nats.windows)
    assert all(one.block >= other.block for one, other in zip(alike, alone, strict=True))


def test_a_shared_block_is_as_many_tokens_and_leaves_a_short_text_six():
    long, short = correlated(2_000, 30, 1), correlated(300, 0, 2)
    twice = tuple(np.repeat(each, 2, axis=2) for each in correlated(1_000, 0, 3))  # windows of two tokens
    found = [arrow.measure(*each) for each in (long, short, twice)]
    tokens = arrow.shared_block(found)
    assert arrow.block_for(found[2], tokens) == pytest.approx(max(tokens / 2, found[2].n_windows / 48))
    assert arrow.block_for(found[1], tokens) <= 300 / 6
    assert arrow.shared_block([arrow.measure(*correlated(2_000, 0, seed)) for seed in (0, 4)]) is None


@given(st.integers(0, 1_000))
@settings(deadline=None, max_examples=20)
def test_an_arrow_turned_round_is_the_opposite_in_percent_of_the_mean_and_in_nats(seed):
    random = np.random.default_rng(seed)
    forward = random.gamma(4, 1, (3, 40, 2))
    backward = forward * random.uniform(1, 2, forward.shape)
    for unit in ("percent of the mean", "nats"):
        there, back = arrow.sample(forward, backward, unit=unit), arrow.sample(backward, forward, unit=unit)
        assert back.value == pytest.approx(-there.value) and back.parts == pytest.approx(-there.parts)
        assert there.parts.mean() == pytest.approx(0, abs=1e-9)
    percent = arrow.sample(forward, backward)
    assert percent.value == pytest.approx(100 * (backward.mean() / forward.mean() - 1))
    assert arrow.sample(backward, forward).value != pytest.approx(-percent.value), "the reason for the other unit"
