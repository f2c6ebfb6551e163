"""The one visit to a state: all that a measurement wants of its weights, which then leave the memory again.

Models are evaluated in fp32, whatever the precision of their training, each on its held-out windows: the same text for
all orders of reading. A model of several orders is evaluated in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from modules.data.token_file import TokenFile, open_tokens
from modules.data.windows import Windows, split
from modules.exchange.authors import UNKNOWN
from modules.measurement.pairing import Trained
from modules.measurement.text_losses import text_losses
from modules.models import LanguageModel, build_model
from modules.models.evaluate import held_out_losses, snippet, sub_window_losses
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer
from modules.training.checkpoint import check_tensors, load_state
from modules.training.recording import SNIPPET_TOKENS

# Held-out tokens that are also read in shorter windows, in as many passes as the context has powers of two.
SUB_WINDOW_TOKENS = 1 << 18
STRETCHES = 32  # in which those lie, evenly over the held-out text, to be of many documents


@dataclass(frozen=True)
class Evaluation:
    """What a run's model says in one order, losses in nats.

    windows: its held-out windows, read in this order. losses_WT: of each held-out token in text order [windows,
    tokens]. by_length: of the windows `in_parts`, length of the parts -> [n]; empty where the order lists positions,
    those of whole windows. texts: of each token [n] of each text that was asked for, in text order. snippet: a text
    that the model makes up, as long as the texts after BOS that it has seen, or SNIPPET_TOKENS, in text order; None
    without a tokenizer.
    """

    run: Trained
    windows: Windows
    losses_WT: np.ndarray
    by_length: dict[int, np.ndarray]
    texts: list[np.ndarray]
    snippet: str | None

    @property
    def in_parts(self) -> np.ndarray:
        """The windows that were also read in shorter parts, of about SUB_WINDOW_TOKENS. [n]"""
        return np.concatenate([np.arange(stretch.start, stretch.stop) for stretch in stretches_of(self.windows)])


def evaluate(
    run: Trained,
    model: LanguageModel,
    windows: Windows,
    device: torch.device,
    texts: Sequence[np.ndarray] = (),
    toki: Tokenizer | None = None,
) -> list[Evaluation]:
    """Evaluate the model of `run` on its held-out windows and on `texts`, ids [n] each, in each of its orders. With a
    tokenizer it makes up a snippet as well."""
    batch_size, context = run.config.valid_batch_size, windows.length
    return [
        Evaluation(
            each,
            one,
            held_out_losses(model, one, batch_size, device),
            losses_in_parts(model, one, batch_size, device),
            [text_losses(model, ids, context, one.reading, one.token_file.bos_id, device) for ids in texts],
            snippet(model, one, toki, min(SNIPPET_TOKENS, context), run.seed, device) if toki else None,
        )
        for each, one in zip(run.in_each_order(), windows.in_each_order(), strict=True)
    ]


def losses_in_parts(
    model: LanguageModel, windows: Windows, batch_size: int, device: torch.device
) -> dict[int, np.ndarray]:
    """`by_length` of an Evaluation: in parts of 2, 4 ... tokens, as far as they divide a window."""
    if not isinstance(windows.reading.orders[0], str):
        return {}
    context = windows.length
    powers = [2**power for power in range(1, context.bit_length()) if context % 2**power == 0 and 2**power < context]
    parts = [
        replace(windows, first=windows.first + stretch.start * windows.stride, count=len(stretch))
        for stretch in stretches_of(windows)
    ]
    return {
        length: np.concatenate([sub_window_losses(model, part, length, batch_size, device) for part in parts])
        for length in powers
    }


def stretches_of(windows: Windows) -> list[range]:
    return spread(len(windows), max(2, SUB_WINDOW_TOKENS // windows.length))


def spread(count: int, wanted: int) -> list[range]:
    """Stretches of together about `wanted` of `count` windows, at equal distances; all in one where there are no
    more."""
    if count <= wanted:
        return [range(count)]
    number = min(STRETCHES, wanted)
    size = wanted // number
    return [range(start, start + size) for start in np.linspace(0, count - size, number).astype(int).tolist()]


def load_model(run: Trained, device: torch.device) -> LanguageModel:
    """The trained model, on `device`, for evaluation. UserError where the state is not the one that `run` was read
    from."""
    state = load_state(run.path)
    if any(state[key] != value for key, value in run.state.items()):
        raise UserError(
            f"{run.path}: was replaced while it was measured (step {run.state['step']:,} before, {state['step']:,} "
            "now); measure again when its run has ended"
        )
    model = build_model(run.config.trained_model, run.seed, **run.config.model_arguments)
    weights = state["model"]
    check_tensors(weights, {name: tensor.shape for name, tensor in model.state_dict().items()}, f"{run.path}: model")
    model.load_state_dict(weights)
    return model.to(device).eval()


# The held-out text
# ---------------------------------------------------------------------------------------------------------------------


def held_out_windows(run: Trained, opened: Callable[[str], TokenFile] = open_tokens) -> Windows:
    """The held-out windows of a run, in all its orders; where its state does not know its data, as many of them as the
    file that was given has room for. UserError where its data are not to be found, or were changed since it was
    trained."""
    recorded = run.state["dataset"]["fingerprint"]
    if not Path(run.data_path).is_file():
        raise UserError(
            f"{run.data_path}: the data that {run.path} was trained on are no longer there; say where they are with "
            "--data"
        )
    token_file = opened(run.data_path)
    cut = run.config.cut._replace(held_out_windows=run.held_out_windows)
    if recorded == UNKNOWN:
        room = max(1, len(token_file.tokens) // cut.length - cut.step_windows)
        cut = cut._replace(held_out_windows=min(run.held_out_windows, room))
    elif not token_file.matches(recorded):
        raise UserError(
            f"{run.data_path}: not the data that {run.path} was trained on (fingerprint {token_file.fingerprint}, "
            f"expected {recorded}); say where those are with --data"
        )
    return split(token_file, cut, run.config.reading, run.seed)[1]


def held_out_ids(windows: Windows) -> np.ndarray:
    """The held-out tokens in text order. [windows, tokens]"""
    return windows.token_file.gather(windows.starts(np.arange(windows.count)), windows.length)
