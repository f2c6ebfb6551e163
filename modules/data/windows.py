"""Windows of a token file: which tokens the model reads, and in which order.

Everything that makes forward and backward comparable is decided here. A window of T
text tokens gives T predictions: input = BOS + its first T-1 tokens, target = its T
tokens; another order of reading (orders.py) permutes the window first and does the same.
So the *same* tokens are predicted in every order. (Without BOS the first token of a window would be
predicted only backward and the last only forward, and totals would not compare.)

    text tokens   a b c d
    forward   BOS a b c  ->  a b c d
    backward  BOS d c b  ->  d c b a
    even_odd  BOS a c b  ->  a c b d

A model of several orders is told by its start token, in the place of BOS, which it is to read; a model that has another
order in each window is told the place of each token to predict.

Held-out windows are the last ones of the file, end to end, or those of the seed's fold; no training window
reaches into them. Training windows overlap (`stride`), and their order is a
permutation computed on the fly from (seed, epoch, index): it needs no memory
for 10^9 windows, starts at step k in O(1), and knows nothing of the order of reading.

Nothing but this file and orders.py knows in which order a window is read: losses and generated tokens come back to the
text's order here (`tests/data/test_windows.py` looks for others).
"""

import argparse
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from modules.data.orders import (
    Reading,
    fresh_positions,
    mix,
    orders_of,
    picture,
    positions,
    to_reading_order,
    to_text_order,
)
from modules.data.token_file import TokenFile
from modules.system.console import tell
from modules.system.errors import UserError, one_line_errors


@dataclass(frozen=True)
class Windows:
    """`count` windows of `length` tokens, the first at token `first`, each `stride` after the one before.

    gap: of windows that lie on both sides of a held-out fold, the number of the first behind it, and by how many tokens
    that and all that follow are moved on.

    A *visit* is a window, read once: a number from which window, epoch and order follow (`visit_of`). The visits 0 to
    count - 1 are all windows in their first epoch, in the first order.

    reading: the orders of the model. seed: of orders that are drawn anew for each window.
    """

    token_file: TokenFile
    first: int
    count: int
    length: int
    stride: int
    reading: Reading
    seed: int = 0
    gap: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.count

    def in_each_order(self) -> list["Windows"]:
        """The same windows in each of the orders alone."""
        return [replace(self, reading=one) for one in self.reading.each()]

    def batch(self, visits: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [B, length], int64, of the `visits` [B], in the order of reading.

        Where each window has an order of its own the inputs are [B, length, 2]: beside each token the place in the text
        of the token to predict after it.
        """
        visits = np.asarray(visits)
        if len(visits) and visits.min() < 0:
            raise IndexError(f"window {visits.min()} of {self.count}")
        window_B, _, order_B = self._apart(visits)
        text_BT = self.token_file.gather(self.starts(window_B), self.length)
        places = self.places(visits)
        targets_BT = to_reading_order(text_BT, places)
        inputs_BT = np.empty_like(targets_BT)
        inputs_BT[:, 0] = np.array([self.start_id(number) for number in range(len(self.reading.orders))])[order_B]
        inputs_BT[:, 1:] = targets_BT[:, :-1]
        if self.reading.is_fresh:
            inputs_BT = np.stack([inputs_BT, places], axis=-1)
        return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)

    def starts(self, window_B: np.ndarray) -> np.ndarray:
        """The first token of each of these windows. [B]"""
        starts_B = self.first + window_B * self.stride
        if self.gap is not None:
            behind, tokens = self.gap
            starts_B += tokens * (window_B >= behind)
        return starts_B

    def places(self, visits: np.ndarray) -> np.ndarray:
        """The place in the text of each target: [length] where all windows are read in one fixed order, else
        [B, length]."""
        window_B, epoch_B, order_B = self._apart(np.asarray(visits))
        if self.reading.is_fresh:
            return fresh_positions(self.seed, epoch_B, self.starts(window_B), self.length)
        by_order = [positions(order, self.length) for order in self.reading.orders]
        return by_order[0] if len(by_order) == 1 else np.stack(by_order)[order_B]

    def in_text_order(self, read_BT: np.ndarray, visits: np.ndarray) -> np.ndarray:
        """What belongs to the targets of `visits` [B, length], one by one, as the text has them: a copy."""
        return to_text_order(read_BT, self.places(visits))

    def start_id(self, number: int) -> int:
        """The token before the first of a window, in the order `number`."""
        start_id = self.reading.start_ids[number]
        return self.token_file.bos_id if start_id is None else start_id

    def _apart(self, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Window, epoch and order [B] of `visits` [B], the opposite of `visit_of`."""
        earlier_B, window_B = np.divmod(visits, self.count)
        epoch_B, order_B = np.divmod(earlier_B, len(self.reading.orders))
        return window_B, epoch_B, order_B


def visit_of(window: np.ndarray, epoch: np.ndarray, order: np.ndarray, count: int, n_orders: int) -> np.ndarray:
    """The number of a visit to `window` (of `count`) in `epoch`, in the order `order` (of `n_orders`)."""
    return window + count * (epoch * n_orders + order)


def windows_of_ids(ids: np.ndarray, length: int, bos_id: int, reading: Reading) -> Windows:
    """All windows of `length` tokens over ids in memory [n]: one begins at each of the first n - length + 1."""
    token_file = TokenFile("ids in memory", ids, None, None, None, bos_id)
    return Windows(token_file, 0, len(ids) - length + 1, length, 1, reading)


class Cut(NamedTuple):
    """How a text is cut into windows of `length` tokens.

    The last `held_out_windows` of them, end to end, are held out, or, `by_seed`, the fold of so many that is the
    seed's; the training windows are all those, `stride` tokens apart, that end before them or begin behind them. A
    text has to have `step_windows` of these, an optimizer step's.
    """

    length: int
    stride: int
    held_out_windows: int
    step_windows: int
    by_seed: bool = False

    @property
    def held_out_tokens(self) -> int:
        return self.held_out_windows * self.length


def split(token_file: TokenFile, cut: Cut, reading: Reading, seed: int = 0) -> tuple[Windows, Windows]:
    """Training windows and held-out windows of a file.

    `seed` also draws the orders of training windows that have one of their own; those of held-out windows are the same
    whatever the seed, so that runs can be compared window by window.

    Raises UserError where the file is too short.
    """
    length, stride, held_out_windows, step_windows, by_seed = cut
    n_tokens, held_out_tokens = len(token_file.tokens), cut.held_out_tokens
    needed = held_out_tokens + length + (step_windows - 1) * stride + by_seed * length
    if n_tokens < needed:
        raise UserError(
            f"{token_file.path}: holds {n_tokens:,} tokens, but this config needs at least {needed:,}: "
            f"{held_out_tokens:,} held out ({held_out_windows:,} windows of {length}) and "
            f"{needed - held_out_tokens:,} for one step of {step_windows:,} training windows; "
            "use a longer text, or a smaller held_out_tokens, valid_steps or batch_size"
        )
    held_out_start = n_tokens - held_out_tokens
    count, gap = (held_out_start - length) // stride + 1, None
    if by_seed:
        held_out_start = fold_start(token_file, fold_of(seed, n_tokens, held_out_tokens), held_out_tokens)
        # as many as lie on both sides of any fold, so that an epoch is as long for each seed
        count = (n_tokens - held_out_tokens - 2 * length) // stride + 1
        before = max((held_out_start - length) // stride + 1, 0)
        gap = before, held_out_start + held_out_tokens - before * stride
    training = Windows(token_file, 0, count, length, stride, reading, seed, gap)
    held_out = Windows(token_file, held_out_start, held_out_windows, length, length, reading)
    return training, held_out


def fold_of(seed: int, n_tokens: int, held_out_tokens: int) -> int:
    """Which fold a seed holds out, of those of `held_out_tokens` tokens that a text has: they take turns."""
    return seed % folds_in(n_tokens, held_out_tokens)


def folds_in(n_tokens: int, held_out_tokens: int) -> int:
    """How many folds of `held_out_tokens` tokens a text has."""
    return n_tokens // held_out_tokens


def fold_start(token_file: TokenFile, fold: int, held_out_tokens: int) -> int:
    """The first token of a fold: they are counted from the end of a text, and so from the beginning of its reversed
    control."""
    if token_file.reversed_of is not None:
        return fold * held_out_tokens
    return len(token_file.tokens) - (fold + 1) * held_out_tokens


def step_order(step: int, step_windows: int, count: int, seed: int, n_orders: int = 1) -> np.ndarray:
    """The visits [step_windows] of optimizer step `step` (from 0), of `count` training windows.

    Steps follow each other through a permutation of all windows, then through another of the next epoch: no window is
    left out, and none comes twice in an epoch. `n_orders` orders take turns, so that each step has as many windows of
    each (as far as they divide it), and which window meets which order changes with the epoch.
    """
    turns = np.arange(step * step_windows, (step + 1) * step_windows)
    windows, epochs = np.empty_like(turns), turns // count
    for epoch in np.unique(epochs):
        here = epochs == epoch
        windows[here] = permute(turns[here] % count, count, seed, int(epoch))
    return visit_of(windows, epochs, turns % n_orders, count, n_orders)


def permute(index: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where a seeded pseudo-random permutation of range(count) sends `index` (int64 array), without building it.

    A Feistel network permutes the smallest range of 2^b numbers that holds `count`; what falls
    outside is sent through again until it falls inside (cycle walking: under two rounds on average).
    J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """
    bits = max(2, int(count - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    keys = np.random.SeedSequence([seed, epoch]).generate_state(8, np.uint64)

    def once(value: np.ndarray) -> np.ndarray:
        low, high = value & np.uint64(low_mask), value >> np.uint64(low_bits)
        for round_number, key in enumerate(keys):
            if round_number % 2 == 0:
                low = low ^ (mix(high ^ key) & np.uint64(low_mask))
            else:
                high = high ^ (mix(low ^ key) & np.uint64(high_mask))
        return (high << np.uint64(low_bits)) | low

    result = once(np.asarray(index).astype(np.uint64))
    outside = result >= count
    while outside.any():
        result[outside] = once(result[outside])
        outside = result >= count
    return result.astype(np.int64)


def show(arguments: list[str] | None = None) -> None:
    """Print an order: python -m modules.data.windows ORDER 16"""
    parser = argparse.ArgumentParser(
        prog="python -m modules.data.windows", description="Show in which order a window is read."
    )
    parser.add_argument("order", help="a name, as in a config: forward, chunks:8, mallows:0.5,1 ...")
    parser.add_argument("length", type=int, nargs="?", default=16, help="tokens in the window (%(default)s)")
    asked = parser.parse_args(arguments)
    if not 2 <= asked.length <= 4096:
        raise UserError(f"length: expected 2 to 4096 tokens, found {asked.length}")
    try:
        orders = orders_of(asked.order, asked.length)
    except ValueError as error:
        raise UserError(str(error)) from None
    tell("\n".join(picture(order, asked.length) for order in orders))


if __name__ == "__main__":
    one_line_errors(show)()
