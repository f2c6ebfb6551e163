"""A text that grows: forward models write what comes next, backward models what came before, and one of each writes
outward.

A backward model reads a text from its end, behind BOS as in training, so what it makes up stands before the text. Texts
are kept as people read them; only here, where they are handed to a model and come back, are they turned, by its order.

Two models take turns of some tokens. Each reads all that the other has written, as far as its context reaches, so the
text is one: every turn is drawn from what its model says of the text so far.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modules.data.orders import BACKWARD, FORWARD, positions, reads_on, to_reading_order
from modules.measurement.evaluation import load_model
from modules.measurement.pairing import Trained
from modules.models import LanguageModel
from modules.models.generate import Sampling, continued
from modules.system.errors import UserError

TURN = 16  # tokens; with each turn a model reads its context anew


@dataclass(frozen=True)
class Writer:
    """A model that goes on with a text in one direction. start_id: what it reads first."""

    model: LanguageModel
    direction: str
    start_id: int

    @property
    def at_front(self) -> bool:
        """Whether what it writes stands before the text."""
        return self.direction == BACKWARD

    def goes_on(
        self, text_BT: np.ndarray, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Iterator[np.ndarray]:
        """Yields the tokens [B] that it puts to the texts [B, T], one after another, for ever."""
        device = next(self.model.parameters()).device
        read_BT = to_reading_order(text_BT, positions(self.direction, text_BT.shape[1]))
        start_B1 = np.full((len(text_BT), 1), self.start_id)
        tokens_BT = torch.from_numpy(np.concatenate([start_B1, read_BT], axis=1)).to(device)
        for next_B in continued(self.model, tokens_BT, sampling, generator):
            yield next_B.cpu().numpy()


def writers_of(
    runs: Sequence[Trained], bos_id: int, device: torch.device, direction: str | None = None
) -> list[Writer]:
    """The models of `runs`, forward before backward; only that of `direction`, where one is asked for. A model of both
    orders is both.

    UserError where a run reads in another order, two in one direction, or none in the one asked for.
    """
    found: dict[str, Trained] = {}
    for run in runs:
        if not reads_on(run.config.orders[run.number]):
            raise UserError(
                f"{run.path}: reads {run.order}: expected a model that reads forward or backward, as what others have "
                "read is no text to go on with; measure_arrow.py -t shows a window that it makes up"
            )
        if direction in (None, run.order) and run.order in found:
            raise UserError(
                f"{run.path}: expected one model that reads {run.order}, found another: {found[run.order].path}"
            )
        found[run.order] = run
    wanted = [each for each in (FORWARD, BACKWARD) if each in found and direction in (None, each)]
    if not wanted:
        raise UserError(f"{runs[0].path}: expected a model that reads {direction}, found {', '.join(found)}")
    models: dict[object, LanguageModel] = {}
    for run in map(found.__getitem__, wanted):
        if run.path not in models:
            models[run.path] = load_model(run, device)
    return [Writer(models[found[each].path], each, start_id_of(found[each], bos_id)) for each in wanted]


def start_id_of(run: Trained, bos_id: int) -> int:
    """The token that stands first in what the model of `run` reads."""
    start_id = run.config.reading.start_ids[run.number]
    return bos_id if start_id is None else start_id


def grown(
    writers: Sequence[Writer],
    text: Sequence[int],
    samples: int,
    n_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Iterator[np.ndarray]:
    """Yields the texts [samples, T] after each token, beginning with `text` itself; each writer puts `n_tokens` to
    them."""
    text_BT = np.tile(np.array(text, dtype=np.int64), (samples, 1))
    yield text_BT
    turn = n_tokens if len(writers) == 1 else TURN
    for start in range(0, n_tokens, turn):
        for writer in writers:
            new = writer.goes_on(text_BT, sampling, generator)
            for next_B in itertools.islice(new, min(turn, n_tokens - start)):
                parts = (next_B[:, None], text_BT) if writer.at_front else (text_BT, next_B[:, None])
                text_BT = np.concatenate(parts, axis=1)
                yield text_BT
