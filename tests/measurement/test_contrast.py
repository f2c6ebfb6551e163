"""Contrasts of arrows: what is shared goes from a difference, what is not adds up."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.measurement import arrow
from modules.measurement.arrow import Sample
from modules.measurement.contrast import combination, contrast, holm, trend, turning
from modules.measurement.noise import noise_of


def made(random: np.random.Generator, value=0.0, seeds=0.0, windows=0.0, n_seeds=3, n_windows=64, own=1.0) -> Sample:
    """An arrow whose noise is `own` in each part, on top of that of `seeds` [n_seeds] and `windows` [n_windows]."""
    parts = (
        np.zeros((n_seeds, n_windows))
        + np.reshape(seeds, (-1, 1))
        + windows
        + own * random.standard_normal((n_seeds, n_windows))
    )
    return Sample(value + parts.mean(), parts - parts.mean())


def intervals(found) -> list[float]:
    return [*found.windows, *found.seeds, *found.both]


def test_a_sample_is_the_measured_arrow():
    random = np.random.default_rng(0)
    forward = random.gamma(4, 1, size=(3, 50, 8))
    backward = forward + 0.1 + 0.3 * random.standard_normal(forward.shape)
    found, alone = (
        arrow.measure(forward, backward).percent,
        combination([arrow.sample(forward, backward)], [1], [0], [0]),
    )
    assert alone == found


@given(seed=st.integers(0, 1_000))
@settings(deadline=None, max_examples=20)
def test_a_contrast_turned_round_is_its_negative_and_with_itself_nothing(seed):
    random = np.random.default_rng(seed)
    one, other = made(random, 1.0), made(random)
    for same_seeds, same_text in ((True, True), (False, True), (True, False)):
        there, back = (
            contrast(*both, same_seeds=same_seeds, same_text=same_text) for both in ((one, other), (other, one))
        )
        assert back.value == -there.value and back.se == pytest.approx(there.se) and back.p == pytest.approx(there.p)
    nothing = contrast(one, one, same_seeds=True, same_text=True)
    assert (nothing.value, nothing.se, nothing.both, nothing.p) == (0, 0, (0, 0), 1)


def test_what_is_shared_goes_from_the_difference():
    random = np.random.default_rng(1)
    of_seeds, of_windows = 5 * random.standard_normal(3), 20 * random.standard_normal(64)
    one, other = (made(random, value, of_seeds, of_windows, own=0.1) for value in (1.0, 0.0))
    paired = contrast(one, other, same_seeds=True, same_text=True)
    assert paired.value == pytest.approx(1, abs=0.1) and paired.p < 0.01
    for shared in ((False, True), (True, False), (False, False)):
        assert contrast(one, other, same_seeds=shared[0], same_text=shared[1]).se > 20 * paired.se


def test_what_is_not_shared_adds_up():
    random = np.random.default_rng(2)
    one, other = (
        made(random, seeds=random.standard_normal(3), n_windows=40),
        made(random, seeds=random.standard_normal(5), n_seeds=5),
    )
    found, alone = (
        contrast(one, other, same_seeds=False, same_text=False).noise,
        [noise_of(each.parts) for each in (one, other)],
    )
    for part in ("seeds", "windows", "interaction"):
        assert getattr(found, part) == pytest.approx(sum(getattr(each, part) for each in alone))
    first, second = (each.seeds for each in alone)
    assert found.seeds_df == pytest.approx((first + second) ** 2 / (first**2 / 2 + second**2 / 4))


def test_two_short_windows_stand_against_one_long():
    short = made(np.random.default_rng(3), n_windows=80)
    long = Sample(short.value, short.parts.reshape(3, 40, 2).mean(axis=2))
    assert contrast(short, long, same_seeds=True, same_text=True).se == pytest.approx(0, abs=1e-12)


def test_documents_count_where_both_have_the_same():
    random = np.random.default_rng(4)
    documents = np.repeat(np.arange(8), 8)
    one, other = (Sample(each.value, each.parts, documents) for each in (made(random), made(random)))
    for second, counted in ((other, documents), (Sample(0, other.parts), None)):
        found = contrast(one, second, same_seeds=True, same_text=True).noise
        assert list(vars(found).values()) == pytest.approx(
            list(vars(noise_of(one.parts - other.parts, documents=counted)).values())
        )


def test_seeds_that_are_shared_must_be_equally_many_and_one_seed_says_nothing_of_seeds():
    random = np.random.default_rng(5)
    three, two, one = made(random), made(random, n_seeds=2), made(random, n_seeds=1)
    with pytest.raises(ValueError, match="equally many, found 2 and 3"):
        contrast(three, two, same_seeds=True, same_text=True)
    found = contrast(three, one, same_seeds=False, same_text=True)
    assert found.seeds is None and found.p is None and found.both == found.windows


@pytest.mark.parametrize("same_seeds, same_text", [(True, True), (False, True), (True, False), (False, False)])
def test_intervals_of_a_contrast_cover_the_truth(same_seeds, same_text):
    random, covered = np.random.default_rng(6), 0
    for _ in range(150):
        of_seeds, of_windows = random.standard_normal((2, 3)), 8 * random.standard_normal((2, 64))
        one, other = (
            made(random, value, of_seeds[0 if same_seeds else i], of_windows[0 if same_text else i])
            for i, value in enumerate((1.0, 0.3))
        )
        low, high = contrast(one, other, same_seeds=same_seeds, same_text=same_text).both
        covered += low < 0.7 < high
    assert 0.92 <= covered / 150 < 1


@pytest.mark.parametrize("same_seeds, same_text", [(True, True), (False, True), (True, False), (False, False)])
def test_a_contrast_of_texts_with_their_controls_is_that_of_the_halves_that_turn(same_seeds, same_text):
    """The half that stays is another on each text, and no part of it."""
    random, covered = np.random.default_rng(9), 0
    for _ in range(60):
        of_seeds, of_windows = random.standard_normal((2, 3)), 8 * random.standard_normal((2, 2, 64))
        one, other = (
            tuple(
                made(random, stays + sign * turns, of_seeds[0 if same_seeds else i], windows)
                for sign, windows in zip((1, -1), of_windows[0 if same_text else i], strict=True)
            )
            for i, (turns, stays) in enumerate(((1.0, 5.0), (0.3, -7.0)))
        )
        found = contrast(one, other, same_seeds=same_seeds, same_text=same_text)
        halves = [turning(*each)[0].value for each in (one, other)]
        assert found.value == pytest.approx(halves[0] - halves[1])
        covered += found.both[0] < 0.7 < found.both[1]
    assert 0.9 <= covered / 60 <= 1


# Trends
# -----------------------------------------------------------------------------------------------------------------


def test_trend_is_the_slope_by_doublings():
    random = np.random.default_rng(7)
    samples = [made(random, 0.5 + 0.25 * i, own=1e-9) for i in range(4)]
    found = trend([16, 32, 64, 128], samples, same_seeds=True, same_text=True)
    assert found.value == pytest.approx(0.25) and found.p < 1e-6
    values = [made(random, value).value for value in (0.3, 0.1, 0.9)]
    ragged = [Sample(value, np.zeros((2, 5))) for value in values]
    slope = trend([3, 10, 50], ragged, same_seeds=True, same_text=True).value
    assert slope == pytest.approx(np.polyfit(np.log2([3, 10, 50]), values, 1)[0])


def test_trend_of_nothing_is_seldom_found():
    random, p_values = np.random.default_rng(8), []
    for _ in range(150):
        of_windows = 8 * random.standard_normal(64)
        samples = [made(random, 1.0, random.standard_normal(4), of_windows, n_seeds=4) for _ in range(3)]
        p_values.append(trend([16, 64, 256], samples, same_seeds=False, same_text=True).p)
    assert 0.005 < np.mean(np.array(p_values) < 0.05) <= 0.08


@pytest.mark.parametrize("x", [[16, 32], [16, 16, 32], [0, 1, 2]])
def test_trend_wants_three_values_that_have_logarithms(x):
    with pytest.raises(ValueError, match="expected at least three different values"):
        trend(x, [made(np.random.default_rng(0))] * len(x), same_seeds=True, same_text=True)


# What turns round
# -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1_000), same_text=st.booleans())
@settings(deadline=None, max_examples=20)
def test_the_halves_add_up_to_the_arrow_and_differ_by_the_controls(seed, same_text):
    random = np.random.default_rng(seed)
    text, control = made(random, 1.0, seeds=random.standard_normal(3)), made(random, -0.5)
    turns, stays = turning(text, control, same_text=same_text)
    assert turns.value + stays.value == pytest.approx(text.value) and stays.value - turns.value == pytest.approx(
        control.value
    )
    # Mirroring the question: the control's arrow of time is the opposite one, what does not turn is the same.
    turned, stayed = turning(control, text, same_text=same_text)
    assert intervals(turned) == pytest.approx(
        [-end for pair in (turns.windows, turns.seeds, turns.both) for end in reversed(pair)]
    )
    assert intervals(stayed) == pytest.approx(intervals(stays))


def test_a_large_arrow_that_turns_round_exactly_leaves_nothing():
    """A text that is 40 % harder backward; its mirror, in new words of the same noise, is 40 % harder forward."""
    random = np.random.default_rng(0)
    forward = random.gamma(4, 0.5, (3, 200, 4))
    backward = 1.4 * forward
    for unit in ("percent of the mean", "nats"):
        text, mirror = arrow.sample(forward, backward, unit=unit), arrow.sample(backward, forward, unit=unit)
        turns, stays = turning(text, mirror)
        assert abs(stays.value) < 1e-9 and turns.value == pytest.approx(text.value)
    _, stays = turning(arrow.sample(forward, backward), arrow.sample(backward, forward))
    assert stays.value > 5, "percents of the forward loss would leave so much"


def test_a_control_that_is_exact_turns_everything():
    text = made(np.random.default_rng(9), 1.0, seeds=[0.1, 0.0, 0.2])
    exact = Sample(-text.value, -text.parts[:, ::-1])  # its windows in the order of the reversed text
    turns, stays = turning(text, exact, same_text=True)
    assert (stays.value, stays.se) == (0, 0) and intervals(turns) == pytest.approx(
        intervals(combination([text], [1], [0], [0]))
    )


def test_held_out_text_that_is_shared_helps_the_half_that_stays_and_not_the_half_that_turns():
    random = np.random.default_rng(10)
    of_windows = 20 * random.standard_normal(64)
    text, control = made(random, 1.0, windows=of_windows), made(random, -1.0, windows=-of_windows[::-1])
    (turns, stays), (apart, _) = turning(text, control, same_text=True), turning(text, control)
    assert turns.se == pytest.approx(combination([text], [1], [0], [0]).se, rel=0.2) and stays.se < 0.1 * turns.se
    assert apart.se == pytest.approx(turns.se / math.sqrt(2), rel=0.2)  # what would be wrong here


# Many tests
# -------------------------------------------------------------------------------------------------------------


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04, None, 0.5, 0.9]) == [pytest.approx(0.12), None, 1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8), level=st.floats(0.001, 0.5))
def test_holm_rejects_what_its_steps_do(p, level):
    """From the smallest up: rejected while it is at most the level by the number of those that are left."""
    rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
    for step, index in enumerate(order):
        if p[index] * (len(p) - step) > level:
            break
        rejected.add(index)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level} == rejected
