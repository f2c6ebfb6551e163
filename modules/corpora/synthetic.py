"""Synthetic text whose arrow of time, or whose entropy, is known beforehand.

An instrument that measures differences of one percent has to be shown sources
where the answer is known:

    prime_products    "p q n" with n = p * q: multiplying forward, factoring backward. A strong arrow.
    linear_circuit    "x y" with y = A x over F2, A sparse, its inverse dense. A strong arrow.
    noisy_circuit     the paper's: A is the identity and k ones more, some bits of x and y are flipped. Known entropy.
    markov_chain      detailed balance holds: the text and its reversal have the same law. No arrow, known entropy.
    iid               independent symbols: no arrow, known entropy.
    with_mirror_image any text, each block followed by its own mirror image: no arrow.
    turned_by_coin    any tokenized documents, each forward or mirrored as a coin says: no arrow, else real text.

Each is a generator of pieces of text, so a file of any size takes no memory, and
the same arguments always give the same text. `seed` decides both the rule (the
circuit, the transition matrix) and the sample, each from its own random stream.

The sources are written one ASCII character a symbol. Tokenized with a
byte-level tokenizer without merges (`create_tokenizer(..., vocab_size=257)`), a
token is a character: mirrored text then has exactly mirrored tokens, and the
entropy per character is the entropy per token. The 257 - 27 ids which never occur
cost a small model about 0.001 nats after a few hundred steps (they
all fall together), against a tokenizer of its own for each source.

Line sources repeat with a fixed period: a context of one line, with a stride of one
line, has every window on one example. Separators cost nothing once the model
knows the period.
"""

import codecs
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing

SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
LINES_AT_ONCE = 1_000
CHARACTERS_AT_ONCE = 65_536
MOST_DIGITS = 7  # of a prime: the sieve holds all numbers of so many digits
MOST_BITS = 256  # of a circuit: ordering its columns takes bits^3 steps
MOST_NOISY_BITS = 25  # of a noisy circuit whose entropy is computed: a gigabyte
MIRROR_BLOCK = 4_096  # characters; far longer than any context used here, so that few windows see the mirror's seam


class Source(NamedTuple):
    """A text and what is known of it."""

    text: Iterator[str]
    characters: int | None  # its length, where it is known before it is written
    entropy: float | None  # nats per character, where it is known


def open_source(source: str, **settings) -> Source:
    """The source of that name ("primes", "circuit", "noisy_circuit", "markov", "iid", "mirror") with its length and its
    true entropy.

    `settings` are the arguments of its generator; for "mirror", `text` is the path of a file.
    """
    match source, settings:
        case "primes", {"lines": lines, "digits": digits}:
            pairs = {name: value for name, value in settings.items() if name in ("digits", "from_digits", "ordered")}
            return Source(
                prime_products(**settings), lines * prime_products_line(digits), prime_products_entropy(**pairs)
            )
        case "circuit", {"lines": lines, "bits": bits}:
            return Source(linear_circuit(**settings), lines * linear_circuit_line(bits), linear_circuit_entropy(bits))
        case "noisy_circuit", {"lines": lines, "bits": bits}:
            rule = {name: value for name, value in settings.items() if name != "lines"}
            return Source(noisy_circuit(**settings), lines * linear_circuit_line(bits), noisy_circuit_entropy(**rule))
        case "markov", {"characters": characters, "symbols": symbols, "seed": seed}:
            return Source(markov_chain(**settings), characters, markov_chain_entropy(symbols, seed))
        case "iid", {"characters": characters, "symbols": symbols, "seed": seed}:
            return Source(iid(**settings), characters, iid_entropy(symbols, seed))
        case "mirror", {"text": path, "block": block}:
            return Source(with_mirror_image(read_text(path), block), None, None)
    raise UserError(
        "expected primes, circuit, noisy_circuit, markov, iid or mirror with its sizes, "
        f"found {source} with {', '.join(settings) or 'none'}"
    )


# Products of primes
# -----------------------------------------------------------------------------------------------------


def prime_products(
    lines: int,
    digits: int = 3,
    seed: int = 0,
    from_digits: int | None = None,
    ordered: bool = False,
    least_first: bool = False,
) -> Iterator[str]:
    """`lines` lines "p q n": p and q uniform primes of `from_digits` (by default `digits`) to `digits` digits, and
    their product n.

    Shorter numbers have zeros in front, n so that it has 2 * `digits` digits. p and q are independent, or, `ordered`,
    every pair with p < q is as probable as any other. least_first: the digits of n from the last to the first.
    """
    primes = primes_of(digits, from_digits)
    sample = stream(seed, "sample")
    way = -1 if least_first else 1
    for n_lines in portions(lines, LINES_AT_ONCE):
        if ordered:
            chosen = sample.integers([len(primes), len(primes) - 1], size=(n_lines, 2))  # the other is not the first
            chosen[:, 1] += chosen[:, 1] >= chosen[:, 0]
            chosen.sort(axis=1)
        else:
            chosen = sample.integers(len(primes), size=(n_lines, 2))
        lines_of = (
            f"{p:0{digits}d} {q:0{digits}d} {f'{p * q:0{2 * digits}d}'[::way]}\n" for p, q in primes[chosen].tolist()
        )
        yield "".join(lines_of)


def prime_products_entropy(digits: int = 3, from_digits: int | None = None, ordered: bool = False) -> float:
    """Nats per character: two uniform primes a line, and a product that adds nothing, in either direction of
    reading."""
    n = len(primes_of(digits, from_digits))
    return math.log(n * (n - 1) / 2 if ordered else n**2) / prime_products_line(digits)


def prime_products_line(digits: int) -> int:
    """Characters in a line, its end included."""
    return 4 * digits + 3


def primes_of(digits: int, from_digits: int | None = None) -> np.ndarray:
    """All primes of `from_digits` (by default `digits`) to `digits` decimal digits, by the sieve of Eratosthenes. [n]
    int64."""
    fewest = digits if from_digits is None else from_digits
    if not 1 <= fewest <= digits <= MOST_DIGITS:
        raise UserError(
            f"digits: expected 1 to {MOST_DIGITS}, and no fewer than from_digits, found {fewest} to {digits}"
        )
    is_prime = np.ones(10**digits, dtype=bool)
    is_prime[:2] = False
    for factor in range(2, math.isqrt(10**digits) + 1):
        if is_prime[factor]:
            is_prime[factor * factor :: factor] = False
    primes = np.flatnonzero(is_prime)
    return primes[primes >= 10 ** (fewest - 1)]


# Linear circuits over F2
# ------------------------------------------------------------------------------------------------


def linear_circuit(lines: int, bits: int = 10, seed: int = 0) -> Iterator[str]:
    """`lines` lines "x y": x uniform in {0, 1}^bits and y = A x over F2, with A = `circuit_matrix(bits, seed)`."""
    matrix = circuit_matrix(bits, seed)
    sample = stream(seed, "sample")
    for n_lines in portions(lines, LINES_AT_ONCE):
        x = sample.integers(2, size=(n_lines, bits), dtype=np.uint8)
        y = x @ matrix.T % 2
        line = np.full((n_lines, linear_circuit_line(bits)), ord(" "), dtype=np.uint8)
        line[:, :bits], line[:, bits + 1 : -1], line[:, -1] = x + ord("0"), y + ord("0"), ord("\n")
        yield line.tobytes().decode("ascii")


def circuit_matrix(bits: int, seed: int = 0) -> np.ndarray:
    """A sparse invertible matrix over F2 with a dense inverse: a chain in scrambled order. [bits, bits] uint8.

    The chain is y_0 = x_0, y_i = x_{i-1} + x_i: 2 - 1/bits ones a row. Its inverse is x_i = y_0 + … + y_i: (bits + 1) /
    2 ones a row. But who reads backward meets the x one after the other, and x_i also is x_j + y_{j+1} + … + y_i for
    any x_j that was read before: where a neighbour was, that is as sparse as the way forward. So the columns stand in
    the order in which each x is as far along the chain as can be from those read before it, and the rows in random
    order. (In random columns the arrow is smaller and depends on their luck. Random parities of three of twelve bits,
    the obvious alternative, are learned by a small model in neither direction within 600 steps.)
    """
    if not 1 <= bits <= MOST_BITS:
        raise UserError(f"bits: expected 1 to {MOST_BITS}, found {bits}")
    chain = np.eye(bits, dtype=np.uint8) + np.eye(bits, k=-1, dtype=np.uint8)
    known, backward_order = [-1], []  # before x_0 the chain has its end, which y_0 tells
    for _ in range(bits):
        farthest = max(set(range(bits)) - set(backward_order), key=lambda i: (min(abs(i - j) for j in known), i))
        backward_order.append(farthest)
        known.append(farthest)
    return chain[stream(seed, "rule").permutation(bits)][:, backward_order[::-1]]


def linear_circuit_entropy(bits: int = 10) -> float:
    """Nats per character: `bits` fair bits a line; the rest follows from them, in either direction."""
    return bits * math.log(2) / linear_circuit_line(bits)


def linear_circuit_line(bits: int) -> int:
    """Characters in a line, its end included."""
    return 2 * bits + 2


def noisy_circuit(lines: int, bits: int = 20, ones: int = 6, flips: float = 0.01, seed: int = 0) -> Iterator[str]:
    """`lines` lines "x y" of which each bit is flipped with probability `flips`: x uniform in {0, 1}^bits, and y = A x
    over F2, with A = `sparse_matrix(bits, ones, seed)`."""
    matrix = sparse_matrix(bits, ones, seed)
    sample = stream(seed, "sample")
    for n_lines in portions(lines, LINES_AT_ONCE):
        x = sample.integers(2, size=(n_lines, bits), dtype=np.uint8)
        written = np.concatenate([x, x @ matrix.T % 2], axis=1) ^ (sample.random((n_lines, 2 * bits)) < flips)
        line = np.full((n_lines, linear_circuit_line(bits)), ord(" "), dtype=np.uint8)
        line[:, :bits], line[:, bits + 1 : -1] = written[:, :bits] + ord("0"), written[:, bits:] + ord("0")
        line[:, -1] = ord("\n")
        yield line.tobytes().decode("ascii")


def sparse_matrix(bits: int, ones: int, seed: int = 0) -> np.ndarray:
    """An invertible matrix over F2: the identity and `ones` ones beside its diagonal, at random. [bits, bits] uint8."""
    beside = np.flatnonzero(~np.eye(bits, dtype=bool)) if 1 <= bits <= MOST_BITS else np.empty(0)
    if not 0 <= ones <= len(beside) // 2:  # of many more, few choices are invertible
        raise UserError(
            f"expected 1 to {MOST_BITS} bits, and ones at no more than half of the places beside the diagonal, "
            f"found {bits} bits and {ones} ones"
        )
    rule = stream(seed, "rule")
    while True:
        matrix = np.eye(bits, dtype=np.uint8)
        matrix.reshape(-1)[rule.choice(beside, ones, replace=False)] = 1
        if invertible(matrix):
            return matrix


def invertible(matrix: np.ndarray) -> bool:
    """Whether a matrix over F2 is, by elimination."""
    rest = matrix.copy()
    for column in range(len(rest)):
        pivots = column + np.flatnonzero(rest[column:, column])
        if not len(pivots):
            return False
        rest[[column, pivots[0]]] = rest[[pivots[0], column]]
        below = column + 1 + np.flatnonzero(rest[column + 1 :, column])
        rest[below] ^= rest[column]
    return True


def noisy_circuit_entropy(bits: int = 20, ones: int = 6, flips: float = 0.01, seed: int = 0) -> float | None:
    """Nats per character, in either direction: the written x is uniform, and of the written y the noise is unknown.

    That noise is A n + m, with n and m the flips of x and y. Its law is the Walsh-Hadamard transform of its
    characteristic function, which at u is (1 - 2 flips) to the power of |u| + |A^T u|. None where that has too many
    entries to hold (some 32 bytes for each of 2^bits).
    """
    if bits > MOST_NOISY_BITS:
        return None
    u = np.arange(2**bits, dtype=np.uint32)
    weight = np.bitwise_count(u)
    for column in sparse_matrix(bits, ones, seed).T:
        weight += np.bitwise_count(u & np.uint32(column @ (1 << np.arange(bits, dtype=np.uint64)))) & 1
    law = (1 - 2 * flips) ** weight.astype(float)
    for step in range(bits):
        pairs = law.reshape(-1, 2, 2**step)
        law = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
    return (bits * math.log(2) + entropy(np.maximum(law / 2**bits, 0))) / linear_circuit_line(bits)


# Time-symmetric sources
# -------------------------------------------------------------------------------------------------


def markov_chain(characters: int, symbols: int = 8, seed: int = 0) -> Iterator[str]:
    """A stationary reversible Markov chain over the first `symbols` letters, `characters` long, in one line without an
    end."""
    transitions, stationary = markov_rule(symbols, seed)
    cumulative = transitions.cumsum(axis=1)[:, :-1]
    sample = stream(seed, "sample")
    state = int(sample.choice(symbols, p=stationary))
    for n in portions(characters, CHARACTERS_AT_ONCE):
        uniform = sample.random(n)
        # Where each state would go at each step: then the walk itself is one look-up a step.
        next_state = np.stack([np.searchsorted(row, uniform, side="right") for row in cumulative], axis=1).tolist()
        walk = []
        for choices in next_state:
            walk.append(SYMBOLS[state])
            state = choices[state]
        yield "".join(walk)


def markov_rule(symbols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Transition matrix [symbols, symbols] (rows sum to 1) and stationary law [symbols] of a reversible chain.

    Symmetric positive weights w_ij make a random walk on a weighted graph: P_ij = w_ij / w_i, pi_i proportional to w_i
    = sum_j w_ij, and pi_i P_ij = w_ij / w = pi_j P_ji is detailed balance. Log-normal weights make it a chain worth
    learning: at 8 symbols the entropy rate is 12-37 % below the entropy of single symbols.
    """
    check_symbols(symbols)
    weights = np.exp(1.5 * stream(seed, "rule").standard_normal((symbols, symbols)))
    weights += weights.T
    return weights / weights.sum(axis=1, keepdims=True), weights.sum(axis=1) / weights.sum()


def markov_chain_entropy(symbols: int = 8, seed: int = 0, window: int | None = None) -> float:
    """Nats per character: the entropy rate -sum pi_i P_ij ln P_ij, or the mean over a window that begins with no past.

    The first of the `window` characters is then predicted from nothing and costs the entropy of the stationary law.
    That mean is the floor of a model's loss, the same in both directions.
    """
    transitions, stationary = markov_rule(symbols, seed)
    rate = -float(np.sum(stationary[:, None] * transitions * np.log(transitions)))
    if window is None:
        return rate
    return (entropy(stationary) + (window - 1) * rate) / window


def iid(characters: int, symbols: int = 8, seed: int = 0) -> Iterator[str]:
    """`characters` independent letters from the law `iid_rule(symbols, seed)`, in one line without an end."""
    law = iid_rule(symbols, seed)
    letters = np.frombuffer(SYMBOLS.encode("ascii"), dtype=np.uint8)
    sample = stream(seed, "sample")
    for n in portions(characters, CHARACTERS_AT_ONCE):
        yield letters[sample.choice(symbols, size=n, p=law)].tobytes().decode("ascii")


def iid_rule(symbols: int, seed: int = 0) -> np.ndarray:
    """The law of one symbol, uniform among all laws (a flat Dirichlet). [symbols] float64."""
    check_symbols(symbols)
    return stream(seed, "rule").dirichlet(np.ones(symbols))


def iid_entropy(symbols: int = 8, seed: int = 0) -> float:
    """Nats per character."""
    return entropy(iid_rule(symbols, seed))


def with_mirror_image(text: Iterable[str], block: int = MIRROR_BLOCK) -> Iterator[str]:
    """Each block of `block` characters, followed by its own mirror image: A A' B B' …

    Every pair is a palindrome, so the whole read backward is the same palindromes in the opposite order: as
    time-symmetric as the order of the blocks. Text and image lie side by side, so training and held-out text
    hold the same share of both. A last block may be shorter.
    """
    rest = ""
    for piece in text:
        rest += piece
        whole = len(rest) // block * block
        for start in range(0, whole, block):
            this = rest[start : start + block]
            yield this + this[::-1]
        rest = rest[whole:]
    if rest:
        yield rest + rest[::-1]


def turned_by_coin(documents: Sequence[np.ndarray], separator: int, tokens: int, seed: int = 0) -> np.ndarray:
    """`tokens` ids of `documents` (arrays of ids), each forward or mirrored as a fair coin says, and `separator`
    between two.

    The documents stand in a circle, in random order, and the text is an arc of it that begins anywhere. Coins, order
    and beginning of an arc are as likely as those of its mirror image, so the law of the text has exactly no arrow; and
    all else is as in the documents: how often tokens occur, how far they depend on each other, that windows of one
    document are alike, and that documents differ. Ids are mirrored, not characters: so it holds for every tokenizer.

    Raises UserError where the documents have fewer ids.
    """
    sample = stream(seed, "sample")
    between = np.array([separator], dtype=documents[0].dtype)
    circle = []
    for index, mirrored in zip(
        sample.permutation(len(documents)), sample.integers(2, size=len(documents)), strict=True
    ):
        circle += [documents[index][::-1] if mirrored else documents[index], between]
    ids = np.concatenate(circle)
    if tokens > len(ids):
        raise UserError(f"expected documents of at least {tokens:,} tokens, found {len(ids):,}")
    return np.roll(ids, -sample.integers(len(ids)))[:tokens]


# Files
# ------------------------------------------------------------------------------------------------------------------


def write_text(path: str | Path, text: Iterable[str], characters: int | None = None) -> int:
    """Write pieces of text to `path` as UTF-8, whole or not at all, and return the number of characters.

    `characters`, where known, is the length of the progress bar; they are ASCII then, and UserError tells where they do
    not fit the disk. Line ends are written as they are, on Windows too.
    """
    check_room(Path(path), characters or 0)
    written = 0
    with (
        replacing(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
        bar(total=characters, desc=f"writing {Path(path).name}", unit="char", unit_scale=True) as progress,
    ):
        for piece in text:
            file.write(piece)
            written += len(piece)
            progress.update(len(piece))
    return written


def read_text(path: str | Path) -> Iterator[str]:
    """A text's characters in pieces, for `with_mirror_image`; compressed ones are read too. Raises UserError where it
    is not UTF-8."""
    from modules.tok_utils.inspection import check_is_text  # libraries that the other sources need not wait for
    from modules.tok_utils.text_source import TextSource

    check_is_text(Path(path))
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with TextSource(Path(path)) as source:
            while data := source.read(position, position + CHARACTERS_AT_ONCE):
                position += len(data)
                source.release(position)
                yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text, found {error.reason}") from error


def check_room(path: Path, size: int) -> None:
    """UserError where a new file of `size` bytes does not fit the disk of `path`. What is no regular file (/dev/null, a
    pipe) takes no room."""
    folder = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    if folder is None or path.exists() and not path.is_file():
        return
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{path}: the text would be of {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there; "
            "ask for less of it"
        )


# Helpers
# ----------------------------------------------------------------------------------------------------------------


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose: changing how much one of them draws leaves the other as it was."""
    return np.random.default_rng([seed, *purpose.encode("ascii")])


def portions(total: int, most: int) -> Iterator[int]:
    """`total` cut into sizes of at most `most`."""
    for done in range(0, total, most):
        yield min(most, total - done)


def entropy(law: np.ndarray) -> float:
    """Shannon entropy in nats."""
    law = law[law > 0]
    return -float(np.sum(law * np.log(law)))


def check_symbols(symbols: int) -> None:
    if not 2 <= symbols <= len(SYMBOLS):
        raise UserError(f"number of symbols: expected 2 to {len(SYMBOLS)}, found {symbols}")
