"""Orders of reading against brute force, and what a window, its losses and its visits are in each."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.data import windows as windows_module
from modules.data.orders import (
    FRESH,
    Reading,
    fresh_positions,
    name_of,
    orders_of,
    positions,
    random_numbers,
    to_reading_order,
    to_text_order,
)
from modules.data.token_file import TokenFile
from modules.data.windows import Cut, split, step_order, windows_of_ids
from modules.system.errors import UserError

FIXED = ["forward", "backward", "middle_out", "ends_in", "even_odd", "odd_even", "halves:backward,forward"]
FIXED += ["halves:forward,backward", "chunks:3", "chunks:2,7", "random:1", "mallows:0.5,1", "mallows:0,3"]


@given(order=st.sampled_from(FIXED), length=st.integers(2, 70))
def test_every_order_is_a_permutation_and_text_order_comes_back(order, length):
    places = positions(order, length)
    assert sorted(places) == list(range(length)) and places.dtype == np.int64
    text = np.arange(3 * length).reshape(3, length)
    read = to_reading_order(text, places)
    assert read.tolist() == [[row[place] for place in places] for row in text.tolist()]
    assert np.array_equal(to_text_order(read, places), text)
    each_its_own = np.stack([places, places[::-1], np.roll(places, 1)])
    assert np.array_equal(to_text_order(to_reading_order(text, each_its_own), each_its_own), text)


@pytest.mark.parametrize(
    "order, length, places",
    [
        ("forward", 5, [0, 1, 2, 3, 4]),
        ("backward", 5, [4, 3, 2, 1, 0]),
        ("middle_out", 6, [3, 2, 4, 1, 5, 0]),
        ("middle_out", 5, [2, 1, 3, 0, 4]),
        ("ends_in", 6, [0, 5, 1, 4, 2, 3]),
        ("ends_in", 5, [0, 4, 1, 3, 2]),
        ("even_odd", 5, [0, 2, 4, 1, 3]),
        ("odd_even", 5, [1, 3, 0, 2, 4]),
        ("halves:backward,forward", 6, [2, 1, 0, 3, 4, 5]),
        ("halves:forward,backward", 5, [0, 1, 2, 4, 3]),
        ("chunks:9", 5, [0, 1, 2, 3, 4]),
        ("mallows:1000,3", 5, [0, 1, 2, 3, 4]),
        # What a seed draws must be the same for ever: states say no more than the seed.
        ("random:1", 8, [0, 6, 5, 7, 4, 1, 3, 2]),
        ("chunks:2", 8, [0, 1, 4, 5, 2, 3, 6, 7]),
        ("mallows:0.5,1", 8, [1, 2, 3, 4, 5, 0, 7, 6]),
    ],
)
def test_the_named_orders(order, length, places):
    assert positions(order, length).tolist() == places


def test_chunks_keep_the_text_within():
    places = positions("chunks:4,2", 18)
    starts = [place for place in places if place % 4 == 0]
    assert starts != sorted(starts) and sorted(starts) == [0, 4, 8, 12, 16]
    assert places.tolist() == [place for start in starts for place in range(start, min(start + 4, 18))]


@pytest.mark.parametrize("theta", [0.0, 0.7])
def test_mallows_draws_each_order_as_often_as_its_law_says(theta):
    """All 24 orders of four tokens: chi-square with 23 degrees of freedom is below 49.7 with probability 0.999."""
    draws = Counter(tuple(positions.__wrapped__(f"mallows:{theta},{seed}", 4)) for seed in range(5_000))
    weights = {
        order: math.exp(-theta * sum(a > b for a, b in itertools.combinations(order, 2)))
        for order in itertools.permutations(range(4))
    }
    expected = {order: 5_000 * weight / sum(weights.values()) for order, weight in weights.items()}
    assert sum((draws[order] - n) ** 2 / n for order, n in expected.items()) < 49.7


def test_random_orders_are_uniform():
    draws = Counter(tuple(positions.__wrapped__(f"random:{seed}", 4)) for seed in range(5_000))
    assert sum((draws[order] - 5_000 / 24) ** 2 / (5_000 / 24) for order in itertools.permutations(range(4))) < 49.7
    fresh = fresh_positions(3, np.arange(5_000) // 100, np.arange(5_000) % 100, 4)
    draws = Counter(map(tuple, fresh.tolist()))
    assert sum((draws[order] - 5_000 / 24) ** 2 / (5_000 / 24) for order in itertools.permutations(range(4))) < 49.7


def test_random_numbers_are_splitmix64():
    def truth(state, count):
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            yield z ^ (z >> 31)

    (key,) = np.random.SeedSequence(5).generate_state(1, np.uint64)
    assert random_numbers(5, 20).tolist() == list(truth(int(key), 20))


@pytest.mark.parametrize(
    "said, problem",
    [
        ("evenodd", 'found "evenodd"; the nearest is even_odd; valid are forward, backward'),
        ("gugugaga", 'found "gugugaga"; valid are forward, backward'),
        ("random", 'expected random:SEED, found "random"'),
        ("random:-1", 'expected random:SEED, an integer of 0 to .* for "-1"'),
        ("random:1,2", "expected random:SEED"),
        ("forward:", "expected forward, found"),
        ("chunks:0", "chunks:TOKENS.* an integer of 1 to"),
        ("mallows:-1,0", 'a number of at least 0 for "-1"'),
        ("mallows:nan,0", "a number of at least 0"),
        ("halves:up,forward", 'forward or backward for "up"'),
        ([0, 1, 2], "expected 4 positions, as many as the context has tokens, found 3"),
        ([0, 1, 1, 3], "found 1 twice or more and 2 missing"),
        ([0, 0, 1, 1], "found 0, 1 twice or more and 2, 3 missing"),
        ([0, 1, 2, 4], "expected positions of 0 to 3, found 4"),
        ([0, 1, True, 3], "expected a name, a list of 4 positions"),
        ([], "expected a name, a list"),
        (["forward"], "expected a name, a list"),
        (["forward", [0, 1, 2, 3]], "expected different orders for one model, found one twice"),
        (["forward", "fresh_random"], "expected fixed orders"),
        (["forward", ["backward"]], "expected a name, a list"),
        (7, "expected a name, a list"),
    ],
)
def test_what_is_no_order_is_refused_in_words(said, problem):
    with pytest.raises(ValueError, match=problem) as refused:
        orders_of(said, 4)
    assert "\n" not in str(refused.value)


def test_positions_that_have_a_name_get_it():
    assert orders_of([0, 1, 2, 3], 4) == ("forward",) and orders_of([3, 2, 1, 0], 4) == ("backward",)
    assert orders_of([0, 2, 1, 3], 4) == ("even_odd",) and orders_of([2, 0, 1, 3], 4) == ((2, 0, 1, 3),)
    assert orders_of("both", 4) == orders_of(["forward", [3, 2, 1, 0]], 4) == ("forward", "backward")
    assert name_of((2, 0, 1, 3)) == "positions_" + name_of((2, 0, 1, 3))[10:] != name_of((2, 0, 3, 1))


# Windows
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", FIXED)
def test_a_window_in_any_order(order):
    ids = np.arange(100, 160)
    windows = windows_of_ids(ids, 8, 7, Reading((order,)))
    inputs, targets = (part.numpy() for part in windows.batch(np.arange(20)))
    for window in range(20):
        read = ids[window : window + 8][positions(order, 8)]
        assert targets[window].tolist() == read.tolist() and inputs[window].tolist() == [7, *read[:-1]]
    assert np.array_equal(windows.in_text_order(targets, np.arange(20)), ids[np.arange(20)[:, None] + np.arange(8)])


def test_a_model_of_several_orders_is_told_which_and_reads_as_much_in_each():
    ids, orders = np.arange(1, 60), ("forward", "backward", "even_odd")
    windows = windows_of_ids(ids, 8, 0, Reading.of(orders, vocab_size=100))
    count, met = len(windows), set()
    for step in range(30):
        visits = step_order(step, 9, count, 5, n_orders=3)
        inputs, targets = (part.numpy() for part in windows.batch(visits))
        assert Counter(inputs[:, 0]) == {100: 3, 101: 3, 102: 3}
        for row, visit in enumerate(visits):
            order = orders[inputs[row, 0] - 100]
            text = ids[visit % count :][:8]
            assert targets[row].tolist() == text[positions(order, 8)].tolist()
            met.add((visit % count, order))
        assert np.array_equal(windows.in_text_order(targets, visits)[:, 0], 1 + visits % count)
    assert len(met) > 1.5 * count, "windows meet other orders in other epochs"
    for number, one in enumerate(windows.in_each_order()):
        inputs, targets = one.batch([4])
        assert inputs[0, 0] == 100 + number and targets[0].tolist() == ids[4:12][positions(orders[number], 8)].tolist()


def test_fresh_orders_follow_from_seed_epoch_and_window():
    ids = np.arange(1, 200)
    file = TokenFile("ids", ids, None, None, None, 0)
    training, held_out = split(file, Cut(16, 8, 2, 2), Reading((FRESH,)), seed=3)
    other, held_out_too = split(file, Cut(16, 8, 2, 2), Reading((FRESH,)), seed=4)
    count = len(training)
    one, again, next_epoch = (training.places(np.arange(count) + epoch * count) for epoch in (0, 0, 1))
    assert np.array_equal(one, again) and len(np.unique(np.concatenate([one, next_epoch]), axis=0)) == 2 * count
    assert not np.array_equal(one, other.places(np.arange(count)))
    assert np.array_equal(held_out.places([0, 1]), held_out_too.places([0, 1])), "all seeds are evaluated alike"
    assert np.array_equal(training.places([5]), one[5:6]), "whatever else is in the batch"
    inputs, targets = training.batch([5, 9])
    assert inputs.shape == (2, 16, 2) and np.array_equal(inputs[..., 1], one[[5, 9]])
    assert inputs[:, 0, 0].eq(0).all() and inputs[:, 1:, 0].equal(targets[:, :-1])
    assert training.in_text_order(targets.numpy(), [5, 9]).tolist() == [ids[40:56].tolist(), ids[72:88].tolist()]


def test_the_picture_of_an_order(capsys):
    windows_module.show(["even_odd", "5"])
    assert capsys.readouterr().out.split("\n")[:3] == [
        "place in text  0 1 2 3 4",
        "read as        0 3 1 4 2",
        "places read    0 2 4 1 3",
    ]
    for order in [*FIXED, FRESH, "both"]:
        windows_module.show([order])
    assert capsys.readouterr().out.count("places read") == len(FIXED) + 3 + 2
    with pytest.raises(UserError, match="the nearest is even_odd"):
        windows_module.show(["evenodd", "5"])
    with pytest.raises(UserError, match="2 to 4096"):
        windows_module.show(["even_odd", "5000"])
