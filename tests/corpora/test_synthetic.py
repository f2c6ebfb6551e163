"""The synthetic sources obey the laws they claim, and their entropies are those of an independent count."""

import math
import subprocess
import sys
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.corpora import synthetic as sources
from modules.system.errors import UserError


def test_prime_lines_are_products_of_two_primes():
    lines = "".join(sources.prime_products(2_500, digits=3, seed=4)).splitlines()
    assert len(lines) == 2_500
    for line in lines:
        p, q, n = line.split(" ")
        assert int(p) * int(q) == int(n) and len(line) + 1 == sources.prime_products_line(3)
        assert all(int(prime) % d for prime in (p, q) for d in range(2, 32))  # 31² < 999 < 37²: enough to tell a prime


def test_prime_entropy_is_the_logarithm_of_the_number_of_lines_that_occur():
    possible = {line for line in "".join(sources.prime_products(20_000, digits=1)).splitlines()}
    assert len(possible) == 16  # {2, 3, 5, 7}²
    assert sources.prime_products_entropy(1) == pytest.approx(math.log(16) / len("2 3 06\n"))


def test_primes_of_several_lengths_in_order_with_the_product_from_its_last_digit():
    lines = "".join(
        sources.prime_products(30_000, digits=2, from_digits=1, ordered=True, least_first=True)
    ).splitlines()
    primes = [n for n in range(2, 100) if all(n % d for d in range(2, n))]
    possible = {f"{p:02} {q:02} {str(p * q).zfill(4)[::-1]}" for p in primes for q in primes if p < q}
    assert set(lines) == possible
    counts = np.unique(lines, return_counts=True)[1]
    assert abs(counts - 30_000 / 300).max() < 6 * math.sqrt(30_000 / 300)  # each pair as probable
    entropy = sources.prime_products_entropy(2, from_digits=1, ordered=True)
    assert entropy == pytest.approx(math.log(len(possible)) / len("02 03 6000\n"))


@given(bits=st.integers(1, 12), seed=st.integers(0, 50))
def test_circuit_is_sparse_and_its_inverse_dense(bits, seed):
    matrix = sources.circuit_matrix(bits, seed)
    assert matrix.sum() == 2 * bits - 1
    inverse = inverse_over_f2(matrix)
    assert np.array_equal(matrix @ inverse % 2, np.eye(bits))
    assert inverse.sum() == bits * (bits + 1) // 2


def inverse_over_f2(matrix: np.ndarray) -> np.ndarray:
    """Gauss-Jordan elimination; fails on a singular matrix."""
    n = len(matrix)
    both = np.concatenate([matrix, np.eye(n, dtype=np.uint8)], axis=1)
    for column in range(n):
        pivot = column + int(np.flatnonzero(both[column:, column])[0])
        both[[column, pivot]] = both[[pivot, column]]
        for row in np.flatnonzero(both[:, column]):
            if row != column:
                both[row] ^= both[column]
    return both[:, n:]


def test_who_reads_a_circuit_backward_meets_its_dense_parities_first():
    """The fewest y that, with any of the x read before, give the next x: brute force over all those x."""
    inverse = inverse_over_f2(sources.circuit_matrix(8, seed=3))[::-1]  # in backward reading order
    fewest = [
        min(
            np.bitwise_xor.reduce([bits, *(inverse[i] for i in chosen)]).sum()
            for size in range(k + 1)
            for chosen in combinations(range(k), size)
        )
        for k, bits in enumerate(inverse)
    ]
    assert fewest == [8, 4, 2, 2, 1, 1, 1, 1]


def test_circuit_lines_obey_the_circuit_and_all_inputs_occur():
    lines = "".join(sources.linear_circuit(3_000, bits=4, seed=2)).splitlines()
    matrix = sources.circuit_matrix(4, seed=2)
    x, y = np.array([[[int(bit) for bit in word] for word in line.split(" ")] for line in lines]).transpose(1, 0, 2)
    assert np.array_equal(y, x @ matrix.T % 2)
    assert {tuple(row) for row in x.tolist()} == set(product((0, 1), repeat=4))
    assert sources.linear_circuit_entropy(4) == pytest.approx(math.log(2**4) / (len(lines[0]) + 1))


@given(bits=st.integers(1, 12), seed=st.integers(0, 50), data=st.data())
def test_a_noisy_circuit_is_the_identity_and_some_ones_and_can_be_inverted(bits, seed, data):
    ones = data.draw(st.integers(0, bits * (bits - 1) // 2))
    matrix = sources.sparse_matrix(bits, ones, seed)
    assert matrix.sum() == bits + ones and (matrix.diagonal() == 1).all()
    assert np.array_equal(matrix @ inverse_over_f2(matrix) % 2, np.eye(bits))
    singular = matrix.copy()
    singular[0] = singular[1:].sum(axis=0) % 2
    assert sources.invertible(matrix) and not sources.invertible(singular)


def test_noisy_circuit_lines_obey_the_circuit_but_for_the_flips():
    text = "".join(sources.noisy_circuit(20_000, bits=6, ones=4, flips=0.03, seed=2))
    x, y = np.array([[[int(bit) for bit in word] for word in line.split(" ")] for line in text.splitlines()]).swapaxes(
        0, 1
    )
    noise = y ^ (x @ sources.sparse_matrix(6, 4, seed=2).T % 2)
    # a bit of y is right where an even number of its row's flips and its own happened
    row_weights = sources.sparse_matrix(6, 4, seed=2).sum(axis=1)
    assert noise.mean(axis=0) == pytest.approx((1 - 0.94 ** (row_weights + 1)) / 2, abs=0.006)
    assert abs(x.mean() - 0.5) < 0.01


@pytest.mark.parametrize("bits, ones, flips", [(1, 0, 0.2), (3, 0, 0.01), (3, 2, 0.1), (4, 5, 0.05)])
def test_noisy_circuit_entropy_is_that_of_all_flips_that_can_happen(bits, ones, flips):
    matrix, law = sources.sparse_matrix(bits, ones, seed=3), {}
    for flipped in product((0, 1), repeat=2 * bits):
        chance = math.prod(flips if bit else 1 - flips for bit in flipped)
        noise = tuple((matrix @ flipped[:bits] + flipped[bits:]) % 2)
        law[noise] = law.get(noise, 0) + chance
    of_noise = -sum(chance * math.log(chance) for chance in law.values())
    expected = (bits * math.log(2) + of_noise) / (2 * bits + 2)
    assert sources.noisy_circuit_entropy(bits, ones, flips, seed=3) == pytest.approx(expected, rel=1e-9)


def test_the_floor_of_the_papers_circuit_without_more_ones():
    """25 bits, 1 % flips: (25 ln 2 + 25 h(0.0198)) / 57 nats a token, of which seven more are the paper's frame."""
    two_flips = 0.0198
    h = -two_flips * math.log(two_flips) - (1 - two_flips) * math.log(1 - two_flips)
    assert sources.noisy_circuit_entropy(14, 0, 0.01) == pytest.approx(14 * (math.log(2) + h) / 30)
    assert 25 * (math.log(2) + h) / 57 == pytest.approx(0.3467, abs=1e-4)
    assert sources.noisy_circuit_entropy(sources.MOST_NOISY_BITS + 1) is None


@given(symbols=st.integers(2, 12), seed=st.integers(0, 50))
def test_markov_chain_is_reversible_and_stationary(symbols, seed):
    transitions, stationary = sources.markov_rule(symbols, seed)
    flow = stationary[:, None] * transitions
    assert np.allclose(flow, flow.T)  # detailed balance
    assert np.allclose(transitions.sum(axis=1), 1) and np.allclose(stationary @ transitions, stationary)


def test_markov_entropy_is_that_of_all_words():
    """The entropy of all words of three letters, counted one by one."""
    transitions, stationary = sources.markov_rule(4, seed=1)
    words = [stationary[a] * transitions[a, b] * transitions[b, c] for a, b, c in product(range(4), repeat=3)]
    assert sources.markov_chain_entropy(4, seed=1, window=3) == pytest.approx(sources.entropy(np.array(words)) / 3)
    assert sources.markov_chain_entropy(4, seed=1) == pytest.approx(
        sources.markov_chain_entropy(4, seed=1, window=10**7), rel=1e-5
    )


def test_sampled_transitions_follow_the_rule():
    text = "".join(sources.markov_chain(300_000, symbols=4, seed=5))
    transitions, stationary = sources.markov_rule(4, seed=5)
    states = np.frombuffer(text.encode(), dtype=np.uint8) - ord("a")
    counts = np.zeros((4, 4))
    np.add.at(counts, (states[:-1], states[1:]), 1)
    expected = stationary[:, None] * transitions
    assert np.abs(counts / counts.sum() - expected).max() < 0.01  # standard errors are below 0.002


def test_iid_frequencies_follow_the_law():
    text = "".join(sources.iid(200_000, symbols=5, seed=3))
    counts = np.bincount(np.frombuffer(text.encode(), dtype=np.uint8) - ord("a"), minlength=5)
    law = sources.iid_rule(5, seed=3)
    assert np.abs(counts / counts.sum() - law).max() < 0.01
    assert sources.iid_entropy(5, seed=3) == pytest.approx(-sum(p * math.log(p) for p in law))


@given(pieces=st.lists(st.text(max_size=20)), block=st.integers(1, 9))
def test_mirror_image_keeps_the_text_and_makes_palindromes(pieces, block):
    text, mirrored = "".join(pieces), "".join(sources.with_mirror_image(pieces, block))
    assert len(mirrored) == 2 * len(text)
    halves = [mirrored[start : start + 2 * block] for start in range(0, len(mirrored), 2 * block)]
    assert all(pair == pair[::-1] for pair in halves)
    assert "".join(pair[: len(pair) // 2] for pair in halves) == text


@pytest.mark.parametrize(
    "source, settings",
    [
        ("primes", {"lines": 3_001, "digits": 2}),
        ("circuit", {"lines": 3_001, "bits": 5}),
        ("markov", {"characters": 70_001, "symbols": 3}),
        ("iid", {"characters": 70_001, "symbols": 3}),
    ],
)
def test_same_seed_same_text_and_announced_length(source, settings):
    def text(seed: int) -> str:
        return "".join(sources.open_source(source, seed=seed, **settings).text)

    assert text(0) == text(0) != text(1)
    assert len(text(0)) == sources.open_source(source, seed=0, **settings).characters


def test_a_shorter_text_is_the_beginning_of_a_longer_one():
    """Sizes can grow later without another text: the rule's stream does not depend on the sample's."""
    assert "".join(sources.linear_circuit(5_000, seed=1)).startswith("".join(sources.linear_circuit(1_000, seed=1)))


def test_impossible_sizes_are_refused():
    for call in (
        lambda: sources.primes_of(9),
        lambda: sources.primes_of(2, from_digits=3),
        lambda: sources.markov_rule(1),
        lambda: sources.iid_rule(27),
        lambda: sources.open_source("primes"),
    ):
        with pytest.raises(UserError, match="expected"):
            call()


def test_script_writes_a_file_and_its_mirror(tmp_path):
    def generate(*arguments) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "generate_text.py", *map(str, arguments)], check=False, capture_output=True, text=True
        )

    out, mirrored = tmp_path / "new" / "circuit.txt", tmp_path / "mirrored.txt"
    told = generate("circuit", out, "--lines", 50, "--bits", 4, "--seed", 7)
    assert (
        out.read_bytes() == "".join(sources.linear_circuit(50, 4, 7)).encode() and "0.277259 nats" in told.stdout
    )  # 4 ln 2 / 10
    generate("mirror", mirrored, "--text", out, "--block", 100)
    assert mirrored.read_text() == "".join(sources.with_mirror_image([out.read_text()], 100))

    refused = generate("mirror", out, "--text", out)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1 and "another file" in refused.stderr
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    refused = generate("mirror", mirrored, "--text", tmp_path / "latin.txt")
    assert refused.returncode == 1 and "UTF-8" in refused.stderr and mirrored.stat().st_size == 1000


def test_a_text_that_does_not_fit_the_disk_is_refused_before_it_is_begun(tmp_path):
    def never():
        raise AssertionError("begun")
        yield

    with pytest.raises(UserError, match=r"the text would be of 1,000,000,000.0 GB, and .* GB are free there"):
        sources.write_text(tmp_path / "new" / "x.txt", never(), 10**18)
    assert not list(tmp_path.iterdir())
    sources.check_room(Path("/dev/null"), 10**18)  # takes no room


# Documents turned by a coin
# ---------------------------------------------------------------------------------------------

DOCUMENTS = [np.array(ids, dtype=np.uint16) for ids in ([1, 2], [3, 1, 1], [2])]


def test_a_text_turned_by_coins_is_exactly_as_likely_as_its_mirror_image():
    """Every circle, coin and beginning of three small documents, counted one by one: the law of an arc is that of its
    mirror image."""
    counts: dict[tuple, int] = {}
    for order in permutations(range(3)):
        for coins in product((1, -1), repeat=3):
            circle = [
                token
                for index, coin in zip(order, coins, strict=True)
                for token in (*DOCUMENTS[index][::coin].tolist(), 0)
            ]
            for start in range(len(circle)):
                arc = tuple((circle + circle)[start : start + 5])
                counts[arc] = counts.get(arc, 0) + 1
    assert counts == {arc[::-1]: n for arc, n in counts.items()}
    total, runs, seen = sum(counts.values()), 20_000, dict.fromkeys(counts, 0)
    for seed in range(runs):
        seen[tuple(sources.turned_by_coin(DOCUMENTS, 0, 5, seed).tolist())] += 1  # KeyError: an arc that cannot be
    expected = np.array([runs * n / total for n in counts.values()])
    squares = (np.array([*seen.values()]) - expected) ** 2 / expected
    freedom = len(counts) - 1
    assert squares.sum() < freedom + 4 * math.sqrt(
        2 * freedom
    )  # chi-squared, four standard deviations; these seeds always the same


def test_coins_turn_whole_documents_and_keep_their_tokens():
    whole = sources.turned_by_coin(DOCUMENTS, 0, 9, seed=3)
    assert (
        np.array_equal(np.sort(whole), np.sort(np.concatenate([*DOCUMENTS, np.zeros(3, np.uint16)])))
        and whole.dtype == np.uint16
    )
    assert np.array_equal(whole, sources.turned_by_coin(DOCUMENTS, 0, 9, seed=3))
    with pytest.raises(UserError, match="expected documents of at least 10 tokens, found 9"):
        sources.turned_by_coin(DOCUMENTS, 0, 10)
