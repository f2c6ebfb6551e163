"""Orders of reading: which of a window's tokens is read first, which next.

An order is an array of positions: entry i is the place in the text of the token that is read i-th. Forward is 0, 1, 2
... and backward the same from its end.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=64)
def positions(order: str, length: int) -> np.ndarray:
    """The places in the text [length] of the tokens of a window as `order` reads them; int64, read-only."""
    forward_T = np.arange(length)
    found_T = {"forward": forward_T, "backward": forward_T[::-1]}[order]
    found_T.setflags(write=False)
    return found_T


def to_reading_order(of_text: np.ndarray, order: str) -> np.ndarray:
    """What belongs to the tokens of a text [..., T] in the order in which they are read: a copy [..., T]."""
    return of_text.take(positions(order, of_text.shape[-1]), axis=-1)


def to_text_order(read: np.ndarray, order: str) -> np.ndarray:
    """What was found in the order of reading [..., T] as the text has it: a copy [..., T]."""
    in_text_order = np.empty_like(read)
    in_text_order[..., positions(order, read.shape[-1])] = read
    return in_text_order
