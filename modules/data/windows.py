"""Windows of a token file: which tokens the model reads, and in which order.

Everything that makes forward and backward comparable is decided here. A window of T
text tokens gives T predictions: input = BOS + its first T-1 tokens, target = its T
tokens; another order of reading (orders.py) permutes the window first and does the same.
So the *same* tokens are predicted in every order. (Without BOS the first token of a window would be
predicted only backward and the last only forward, and totals would not compare.)

    text tokens   a b c d
    forward   BOS a b c  ->  a b c d
    backward  BOS d c b  ->  d c b a

Held-out windows are the last ones of the file, end to end; no training window
reaches into them. Training windows overlap (`stride`), and their order is a
permutation computed on the fly from (seed, epoch, index): it needs no memory
for 10^9 windows, starts at step k in O(1), and knows nothing of the order of reading.

Nothing but this file and orders.py knows in which order a window is read: losses and generated tokens come back to the
text's order here (`tests/data/test_windows.py` looks for others).
"""

from dataclasses import dataclass

import numpy as np
import torch

from modules.data.orders import to_reading_order, to_text_order
from modules.data.token_file import TokenFile
from modules.system.errors import UserError


@dataclass(frozen=True)
class Windows:
    """`count` windows of `length` tokens, the first at token `first`, each `stride` after the one before, read in
    `order`."""

    token_file: TokenFile
    first: int
    count: int
    length: int
    stride: int
    order: str

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [B, length], int64, of the windows `indices` [B], in the order of reading."""
        indices = np.asarray(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(f"window {indices.max()} of {self.count}")
        text_BT = self.token_file.gather(self.first + indices * self.stride, self.length)
        targets_BT = to_reading_order(text_BT, self.order)
        inputs_BT = np.empty_like(targets_BT)
        inputs_BT[:, 0] = self.token_file.bos_id
        inputs_BT[:, 1:] = targets_BT[:, :-1]
        return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)

    def in_text_order(self, read_BT: np.ndarray) -> np.ndarray:
        """What belongs to the targets of a batch [B, T], one by one, as the text has them: a copy [B, T]."""
        return to_text_order(read_BT, self.order)


def windows_of_ids(ids: np.ndarray, length: int, bos_id: int, order: str) -> Windows:
    """All windows of `length` tokens over ids in memory [n]: one begins at each of the first n - length + 1."""
    token_file = TokenFile("ids in memory", ids, None, None, None, bos_id)
    return Windows(token_file, 0, len(ids) - length + 1, length, 1, order)


def split(
    token_file: TokenFile, length: int, stride: int, held_out_windows: int, step_windows: int, order: str
) -> tuple[Windows, Windows]:
    """Training windows and held-out windows of a file.

    The last `held_out_windows` windows, end to end, are held out; the training windows
    are all those, `stride` apart, that end before them.

    Raises UserError where the file is too short for the held-out windows and the
    `step_windows` windows of one optimizer step.
    """
    n_tokens = len(token_file.tokens)
    held_out_tokens = held_out_windows * length
    needed = held_out_tokens + length + (step_windows - 1) * stride
    if n_tokens < needed:
        raise UserError(
            f"{token_file.path}: holds {n_tokens:,} tokens, but this config needs at least {needed:,}: "
            f"{held_out_tokens:,} held out ({held_out_windows:,} windows of {length}) and "
            f"{needed - held_out_tokens:,} for one step of {step_windows:,} training windows; "
            "use a longer text, or a smaller held_out_tokens, valid_steps or batch_size"
        )
    held_out_start = n_tokens - held_out_tokens
    training = Windows(token_file, 0, (held_out_start - length) // stride + 1, length, stride, order)
    held_out = Windows(token_file, held_out_start, held_out_windows, length, length, order)
    return training, held_out


def step_order(step: int, step_windows: int, count: int, seed: int) -> np.ndarray:
    """Indices [step_windows] of the training windows of optimizer step `step` (from 0), out of `count`.

    Steps follow each other through a permutation of all windows, then through
    another of the next epoch: no window is left out, and none comes twice in an epoch.
    """
    positions = np.arange(step * step_windows, (step + 1) * step_windows)
    order = np.empty_like(positions)
    epochs = positions // count
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order[here] = permute(positions[here] % count, count, seed, int(epoch))
    return order


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
                low = low ^ (_mix(high ^ key) & np.uint64(low_mask))
            else:
                high = high ^ (_mix(low ^ key) & np.uint64(high_mask))
        return (high << np.uint64(low_bits)) | low

    result = once(np.asarray(index).astype(np.uint64))
    outside = result >= count
    while outside.any():
        result[outside] = once(result[outside])
        outside = result >= count
    return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit. (G. Steele et al., OOPSLA 2014.)"""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
