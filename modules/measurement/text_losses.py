"""What each token of any text costs in each order of reading, aligned to the same tokens.

A text longer than the context is read in overlapping windows, and each token's losses, in every
order, are taken from the window where it is most central. So the two models always see the same window around it,
and away from the text's ends each sees a quarter of the context or more. Windows end to end, as in the held-out loss,
would show every window's edge: there one of the models has seen nothing.
"""

import numpy as np
import torch
from torch import nn

from modules.data.orders import Reading
from modules.data.windows import windows_of_ids
from modules.models.evaluate import held_out_losses
from modules.system.errors import UserError

BATCH = 16  # windows evaluated together


def text_losses(
    model: nn.Module,
    ids: np.ndarray,
    context: int,
    reading: Reading,
    bos_id: int = 0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Losses of the tokens `ids` [n] in one order (one of `reading.each()` where a model reads in several), nats, [n],
    in text order.

    Raises UserError where the text is shorter than the context and the order a list of the context's positions.
    """
    if len(ids) == 0:
        return np.zeros(0)
    length = min(context, len(ids))
    if length < context and not isinstance(reading.orders[0], str):
        raise UserError(
            f"a text of {length} tokens: expected at least the context's {context}, for which the order lists positions"
        )
    starts, chosen, offset = central_windows(len(ids), context)
    windows = windows_of_ids(ids, length, bos_id, reading)
    losses_WT = held_out_losses(model, windows, BATCH, torch.device(device), indices=starts, progress=False)
    return losses_WT[chosen, offset]


def central_windows(n: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows half a context apart over `n` tokens: their starts [W]; for each token, its window [n] and its place
    there [n]."""
    starts = np.unique(np.append(np.arange(0, max(1, n - context + 1), max(1, context // 2)), max(0, n - context)))
    halfway = (starts[1:] + starts[:-1] + context - 1) / 2  # between the middles of neighbouring windows
    chosen = np.searchsorted(halfway, np.arange(n))
    return starts, chosen, np.arange(n) - starts[chosen]
