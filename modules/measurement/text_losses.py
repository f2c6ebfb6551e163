"""What each token of any text costs, forward or backward, aligned to the same tokens.

A text longer than the context is read in overlapping windows, and each token's loss, in either direction, is taken from
the window where it is most central. So the two models always see the same window around it, and away from the text's
ends each sees a quarter of the context or more. Windows end to end, as in the held-out loss, would show every window's
edge: there one of the models has seen nothing.
"""

import numpy as np
import torch
from torch import nn

BATCH = 16  # windows evaluated together


def text_losses(
    model: nn.Module,
    ids: np.ndarray,
    context: int,
    backwards: bool,
    bos_id: int = 0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Losses of the tokens `ids` [n] by a model that reads forward or backward: nats, [n] in text order."""
    if len(ids) == 0:
        return np.zeros(0)
    starts, chosen, offset = central_windows(len(ids), context)
    windows_WT = torch.from_numpy(ids[starts[:, None] + np.arange(min(context, len(ids)))].astype(np.int64))
    losses_WT = window_losses(model, windows_WT.flip(1) if backwards else windows_WT, bos_id, device)
    return (losses_WT[:, ::-1] if backwards else losses_WT)[chosen, offset]


def central_windows(n: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows half a context apart over `n` tokens: their starts [W]; for each token, its window [n] and its place
    there [n]."""
    starts = np.unique(np.append(np.arange(0, max(1, n - context + 1), max(1, context // 2)), max(0, n - context)))
    halfway = (starts[1:] + starts[:-1] + context - 1) / 2  # between the middles of neighbouring windows
    chosen = np.searchsorted(halfway, np.arange(n))
    return starts, chosen, np.arange(n) - starts[chosen]


@torch.inference_mode()
def window_losses(model: nn.Module, targets_WT: torch.Tensor, bos_id: int, device: str | torch.device) -> np.ndarray:
    """Nats of each token of windows given in the direction of reading. [windows, tokens] float64"""
    was_training = model.training
    model.eval()
    inputs_WT = torch.cat([torch.full_like(targets_WT[:, :1], bos_id), targets_WT[:, :-1]], dim=1)
    parts = [
        model.losses(inputs.to(device), targets.to(device)).double().cpu()
        for inputs, targets in zip(inputs_WT.split(BATCH), targets_WT.split(BATCH), strict=True)
    ]
    model.train(was_training)
    return torch.cat(parts).numpy()
