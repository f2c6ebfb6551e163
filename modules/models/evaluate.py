"""The held-out losses of a model: one number a token, aligned to the text in every order of reading; and the text that
it makes up."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from modules.data.orders import name_of, positions, reads_on, to_text_order
from modules.data.windows import Windows
from modules.kernels.precision import fp32_products
from modules.models.generate import Sampling, generate
from modules.models.language_model import LanguageModel
from modules.system.console import bar
from modules.tokenizer import Tokenizer

CPU_TOKENS = 4096  # at once, however large the batch: a CPU is not faster with more, and needs the memory


class Interrupted(Exception):
    """An evaluation that was asked to end early."""


def autocast_for(device: torch.device, precision: str) -> Callable:
    """A function that makes the context in which a model of this precision computes."""
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def held_out_losses(
    model,
    windows: Windows,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    indices: np.ndarray | None = None,
    progress: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Loss of every token of `windows` (or of those in `indices`) in nats: [windows, T] float64, IN TEXT ORDER.

    Entry [w, i] belongs to the i-th token of window w as the text has it, whichever way the model reads, so the results
    of any two orders subtract token by token. Where a model reads in several orders, all windows are read in the first;
    `windows.in_each_order()` has those of each.
    Dropout is off, and fp32 is fp32 (a GPU's TF32 is left to training); the model is left in the mode in which it came.

    Raises Interrupted when `interrupted()` says so, asked before each batch.
    """
    indices = np.arange(len(windows)) if indices is None else indices
    if device.type == "cpu":
        batch_size = min(batch_size, max(1, CPU_TOKENS // windows.length))
    losses = np.empty((len(indices), windows.length), dtype=np.float64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), fp32_products(tf32=False), autocast_for(device, precision)():
            for start in bar(
                range(0, len(indices), batch_size),
                desc="held-out",
                unit="batch",
                leave=False,
                delay=1,
                disable=not progress,
            ):
                if interrupted():
                    raise Interrupted
                some = indices[start : start + batch_size]
                inputs_BT, targets_BT = windows.batch(some)
                losses_BT = model.losses(inputs_BT.to(device), targets_BT.to(device)).cpu().numpy()
                losses[start : start + len(some)] = windows.in_text_order(losses_BT, some)
    finally:
        model.train(was_training)
    return losses


def sub_window_losses(model, windows: Windows, length: int, batch_size: int, device: torch.device) -> np.ndarray:
    """Mean loss of each window of `windows` when it is read in parts of `length` tokens, each behind BOS: nats per
    token, [windows] float64.

    The same tokens with less context, in the same model: what the arrow is at a shorter context, without another
    training. Raises ValueError where `length` does not divide the windows.
    """
    if windows.length % length or windows.stride != windows.length:
        raise ValueError(
            f"expected windows end to end that parts of {length} divide, found length {windows.length}, "
            f"stride {windows.stride}"
        )
    parts = replace(windows, count=len(windows) * windows.length // length, length=length, stride=length)
    return (
        held_out_losses(model, parts, batch_size * windows.length // length, device)
        .reshape(len(windows), -1)
        .mean(axis=1)
    )


def snippet(
    model: LanguageModel, windows: Windows, tokenizer: Tokenizer, n_tokens: int, seed: int, device: torch.device
) -> str:
    """A text that the model makes up from its start token alone, as the text has it whichever way it was read. The same
    draws for the same seed.

    Forward and backward it has `n_tokens` tokens; in other orders, a part of which is no text, as many as a window.
    Where the model reads in several orders, a text in each, after the order's name.
    """
    texts = {}
    for one in windows.in_each_order():
        generator = torch.Generator(device).manual_seed(seed)
        places = one.places(np.zeros(1, dtype=np.int64))
        start, order = torch.tensor([[one.start_id(0)]], device=device), one.reading.orders[0]
        if reads_on(order):
            places = positions(order, n_tokens)
        places_BT = torch.from_numpy(places).to(device) if places.ndim == 2 else None
        read_BT = generate(model, start, places.shape[-1], Sampling(top_k=50), generator, places_BT)[:, 1:]
        in_text_order = to_text_order(read_BT.cpu().numpy(), places)
        texts[name_of(order)] = tokenizer.detokenize(torch.from_numpy(in_text_order))
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{name}: {text}" for name, text in texts.items())
