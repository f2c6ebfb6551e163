"""Orders of reading: which of a window's tokens is read first, which next.

An order is an array of positions: entry i is the place in the text of the token that is read i-th. Forward is 0, 1, 2
... and backward the same from its end. A config names an order (docs/orders.md shows each; `python -m
modules.data.windows ORDER 16` prints one) or lists its positions. All but one are fixed: every window is read in the
same order, to which a model gets used. `fresh_random` draws another for each window, and the model is told places.

What is drawn follows from the seeds alone, by integer arithmetic that no version of a library changes.
"""

import difflib
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

Order = str | tuple[int, ...]  # a name with its parameters, or positions

FORWARD, BACKWARD, FRESH, BOTH = "forward", "backward", "fresh_random", "both"
MAX_PARAMETER = 2**63 - 1
SHOWN_PLACES = 5


# The named orders
# --------------------------------------------------------------------------------------------------------------------


def middle_out(length: int) -> np.ndarray:
    """From the middle to both sides, the place before it first."""
    return np.array(sorted(range(length), key=lambda place: (abs(place - length // 2), place)))


def ends_in(length: int) -> np.ndarray:
    """The first, the last, the second, the last but one ..."""
    return np.array(sorted(range(length), key=lambda place: (min(place, length - 1 - place), place)))


def even_odd(length: int) -> np.ndarray:
    """Every second token, then those left out."""
    return np.concatenate([np.arange(0, length, 2), np.arange(1, length, 2)])


def odd_even(length: int) -> np.ndarray:
    """Every second token from the second on, then those left out."""
    return np.concatenate([np.arange(1, length, 2), np.arange(0, length, 2)])


def halves(length: int, *ways: str) -> np.ndarray:
    """The first half, then the second (the smaller where `length` is odd), each forward or backward."""
    parts = np.array_split(np.arange(length), 2)
    return np.concatenate([part[::-1] if way == BACKWARD else part for part, way in zip(parts, ways, strict=True)])


def chunks(length: int, size: int, seed: int = 0) -> np.ndarray:
    """Chunks of `size` tokens (the last may be shorter) in random order, text order within."""
    parts = np.split(np.arange(length), range(size, length, size))
    return np.concatenate([parts[number] for number in random(len(parts), seed)])


def random(length: int, seed: int) -> np.ndarray:
    """One random order: all are as likely."""
    return np.argsort(random_numbers(seed, length), kind="stable")


def mallows(length: int, theta: float, seed: int) -> np.ndarray:
    """A random order that is the less likely the more pairs of tokens it reads the other way round than forward:
    exp(-theta x pairs), up to a factor.

    Exact, by repeated insertion: token i goes before d of the i that are there with probability exp(-theta x d), up to
    a factor. A theta of 0 makes all orders as likely, a large one is forward. (J.-P. Doignon et al., "The repeated
    insertion model for rankings", Psychometrika 2004; C. L. Mallows, Biometrika 1957.)
    """
    uniform = (random_numbers(seed, length) >> np.uint64(11)) * 2.0**-53
    order: list[int] = []
    for token, u in enumerate(uniform):
        if theta == 0:
            before = int(u * (token + 1))
        else:  # the distribution of `before` is a geometric one, cut off; this is where it exceeds u
            before = int(math.log1p(u * math.expm1(-theta * (token + 1))) / -theta)
        order.insert(token - min(before, token), token)
    return np.array(order)


@dataclass(frozen=True)
class Name:
    """A named order: how it is made from a length and its parameters, what is said of these, and how each is read."""

    make: Callable[..., np.ndarray] | None
    usage: str
    parameters: tuple[Callable[[str], object], ...] = ()
    optional: int = 0


def integer(least: int) -> Callable[[str], int]:
    """How a parameter is read that is an integer of `least` or more. ValueError where it is none."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= MAX_PARAMETER):
            raise ValueError(f"an integer of {least} to {MAX_PARAMETER}")
        return int(text)

    return read


def theta_of(text: str) -> float:
    """The parameter of `mallows`. ValueError where it is no number of at least 0."""
    try:
        if 0 <= (theta := float(text)) < math.inf:
            return theta
    except ValueError:
        pass
    raise ValueError("a number of at least 0")


def way_of(text: str) -> str:
    """A parameter of `halves`. ValueError where it is no direction."""
    if text not in (FORWARD, BACKWARD):
        raise ValueError("forward or backward")
    return text


NAMES = {
    FORWARD: Name(np.arange, FORWARD),
    BACKWARD: Name(lambda length: np.arange(length)[::-1], BACKWARD),
    "middle_out": Name(middle_out, "middle_out"),
    "ends_in": Name(ends_in, "ends_in"),
    "even_odd": Name(even_odd, "even_odd"),
    "odd_even": Name(odd_even, "odd_even"),
    "halves": Name(halves, "halves:WAY,WAY", (way_of, way_of)),
    "chunks": Name(chunks, "chunks:TOKENS[,SEED]", (integer(1), integer(0)), optional=1),
    "random": Name(random, "random:SEED", (integer(0),)),
    "mallows": Name(mallows, "mallows:THETA,SEED", (theta_of, integer(0))),
    FRESH: Name(None, FRESH),
}
# Orders that are known from their positions.
RECOGNIZED = [name for name, of in NAMES.items() if of.make is not None and not of.parameters]
RECOGNIZED += ["halves:forward,backward", "halves:backward,forward"]
USAGES = ", ".join(name.usage for name in NAMES.values())


def parsed(order: str) -> tuple[Name, list]:
    """A named order and its parameters. ValueError, in words, where it is none."""
    name, _, rest = order.partition(":")
    if name not in NAMES:
        near = difflib.get_close_matches(name, [*NAMES, BOTH], n=1)
        hint = f"the nearest is {near[0]}; " if near else ""
        raise ValueError(f'expected an order of reading, found "{order[:40]}"; {hint}valid are {USAGES}')
    found, given = NAMES[name], rest.split(",") if rest else []
    if not len(found.parameters) - found.optional <= len(given) <= len(found.parameters) or (":" in order and not rest):
        raise ValueError(f'expected {found.usage}, found "{order[:40]}"')
    parameters = []
    for read, text in zip(found.parameters, given, strict=False):
        try:
            parameters.append(read(text))
        except ValueError as error:
            raise ValueError(f'expected {found.usage}, {error} for "{text[:40]}", found "{order[:40]}"') from None
    return found, parameters


# An order
# --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def positions(order: Order, length: int) -> np.ndarray:
    """The places in the text [length] of the tokens of a window as a fixed order reads them; int64, read-only.

    Raises ValueError where it is no order, is not fixed, or lists the positions of another length.
    """
    if isinstance(order, str):
        name, parameters = parsed(order)
        if name.make is None:
            raise ValueError(f"{order} has other positions in each window")
        found_T = name.make(length, *parameters).astype(np.int64)
    else:
        check_permutation(order, length)
        found_T = np.array(order, dtype=np.int64)
    found_T.setflags(write=False)
    return found_T


def check_permutation(order: Sequence[int], length: int) -> None:
    """ValueError unless `order` has each of the places 0 to length - 1 once: which are missing, which come twice."""
    if len(order) != length:
        raise ValueError(f"expected {length} positions, as many as the context has tokens, found {len(order)}")
    if outside := [place for place in order if not 0 <= place < length]:
        raise ValueError(f"expected positions of 0 to {length - 1}, found {places_in_words(outside)}")
    seen, twice = set(), []
    for place in order:
        twice += [place] if place in seen else []
        seen.add(place)
    if twice:
        missing = [place for place in range(length) if place not in seen]
        raise ValueError(
            f"expected each position of 0 to {length - 1} once, found {places_in_words(sorted(set(twice)))} twice or "
            f"more and {places_in_words(missing)} missing"
        )


def places_in_words(places: Sequence[int]) -> str:
    more = f" and {len(places) - SHOWN_PLACES:,} more" if len(places) > SHOWN_PLACES else ""
    return ", ".join(str(place) for place in places[:SHOWN_PLACES]) + more


def orders_of(said: object, length: int) -> tuple[Order, ...]:
    """The orders in which a model with `length` tokens of context reads, for what a config says: a name, a list of
    positions, "both", or a list of several orders. Positions that have a name get it.

    Raises ValueError, in words, where it is none of these.
    """
    if said == BOTH:
        return (FORWARD, BACKWARD)
    if is_one_order(said):
        return (named(said, length),)
    if not isinstance(said, list) or len(said) < 2 or not all(map(is_one_order, said)):
        raise ValueError(
            f"expected a name, a list of {length} positions, or a list of two or more of these, "
            f"found {str(said)[:40]}; valid names are {USAGES}, {BOTH}"
        )
    orders = tuple(named(one, length) for one in said)
    if FRESH in orders:
        raise ValueError(f"expected fixed orders for one model, found {FRESH} among them")
    if len({tuple(positions(order, length)) for order in orders}) < len(orders):
        raise ValueError("expected different orders for one model, found one twice")
    return orders


def is_positions(said: object) -> TypeGuard[Sequence[int]]:
    """Whether a config's value lists positions: integers, at least one."""
    return isinstance(said, (list, tuple)) and len(said) > 0 and all(type(place) is int for place in said)


def is_one_order(said: object) -> TypeGuard[str | Sequence[int]]:
    """Whether a config's value is meant for one order: a name or positions."""
    return isinstance(said, str) or is_positions(said)


def is_backward(said: object) -> bool:
    """Whether a config's value is the order backward, by name or by its positions."""
    return said == BACKWARD or (is_positions(said) and list(said) == list(range(len(said)))[::-1])


def named(said: str | Sequence[int], length: int) -> Order:
    """An order under its name where it has one. ValueError where it is none."""
    if isinstance(said, str):
        if said != FRESH:
            positions(said, length)
        return said
    order = tuple(said)
    check_permutation(order, length)
    return next((name for name in RECOGNIZED if tuple(positions(name, length)) == order), order)


def name_of(order: Order) -> str:
    """A short name for people and files: of listed positions a checksum of them."""
    return order if isinstance(order, str) else f"positions_{zlib.crc32(np.array(order, dtype='<i8').tobytes()):08x}"


def in_run_name(orders: Sequence[Order]) -> str:
    """The orders of a model as a part of its run's name, which any system's files can have: "forward", "chunks-8",
    "both"."""
    if tuple(orders) == (FORWARD, BACKWARD):
        return BOTH
    return "+".join(map(name_of, orders)).replace(":", "-")


def reads_on(order: Order) -> bool:
    """Whether the tokens read so far are always a text, so that a model can go on for ever."""
    return order in (FORWARD, BACKWARD)


def to_reading_order(of_text: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What belongs to the tokens of a text [..., T], as it is read at `places` [T] or [..., T]: a copy."""
    if places.ndim == 1:
        return of_text.take(places, axis=-1)
    return np.take_along_axis(of_text, places, axis=-1)


def to_text_order(read: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The opposite of `to_reading_order`."""
    in_text_order = np.empty_like(read)
    if places.ndim == 1:
        in_text_order[..., places] = read
    else:
        np.put_along_axis(in_text_order, places, read, axis=-1)
    return in_text_order


# The orders of a model
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """The orders in which one model reads, and the id of the start token by which it is told which: that of BOS for a
    model of one order (None: the data say which), ids behind the vocabulary for a model of several."""

    orders: tuple[Order, ...]
    start_ids: tuple[int | None, ...] = (None,)

    @classmethod
    def of(cls, orders: Sequence[Order], vocab_size: int) -> "Reading":
        """How a model of `vocab_size` ids reads in these orders."""
        several = len(orders) > 1
        return cls(tuple(orders), tuple(vocab_size + number if several else None for number in range(len(orders))))

    @property
    def start_tokens(self) -> int:
        """Start tokens that the model has beside its vocabulary."""
        return len(self.orders) if len(self.orders) > 1 else 0

    @property
    def is_fresh(self) -> bool:
        """Whether each window has an order of its own."""
        return self.orders == (FRESH,)

    @property
    def name(self) -> str:
        return " + ".join(map(name_of, self.orders))

    def one(self, number: int) -> "Reading":
        """Only the order `number` of a model, which is still told by its start token."""
        return Reading(self.orders[number : number + 1], self.start_ids[number : number + 1])

    def each(self) -> list["Reading"]:
        """Each of the orders alone."""
        return [self.one(number) for number in range(len(self.orders))]


READ_FORWARD, READ_BACKWARD = Reading((FORWARD,)), Reading((BACKWARD,))


# Chance
# --------------------------------------------------------------------------------------------------------------------


def random_numbers(seed: int, count: int) -> np.ndarray:
    """`count` random numbers of 64 bits, uint64. (splitmix64, from a seed that numpy spreads over all bits.)"""
    (key,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return mix(key + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def fresh_positions(seed: int, epoch: np.ndarray, token: np.ndarray, length: int) -> np.ndarray:
    """An order drawn for each of some windows [B, length], from the seed, the epoch [B] and the window's first token
    [B]."""
    (key,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    window_B = mix(mix(key ^ epoch.astype(np.uint64)) ^ token.astype(np.uint64))
    place_T = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.argsort(mix(window_B[:, None] + place_T), axis=1, kind="stable")


def mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit. (G. Steele et al., OOPSLA 2014.)"""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


# A picture
# --------------------------------------------------------------------------------------------------------------------


def picture(order: Order, length: int, seed: int = 0) -> str:
    """The order as text: a row of the places in the text, and under each when it is read. Of `fresh_random` the orders
    of three windows."""
    if order == FRESH:
        rows = fresh_positions(seed, np.zeros(3), np.arange(3) * length, length)
    else:
        rows = positions(order, length)[None]
    width = len(str(length - 1)) + 1
    lines = ["place in text " + "".join(f"{place:>{width}}" for place in range(length))]
    for read in rows:
        when = np.argsort(read)
        lines.append("read as       " + "".join(f"{step:>{width}}" for step in when))
        lines.append("places read   " + "".join(f"{place:>{width}}" for place in read))
    return "\n".join(lines)
