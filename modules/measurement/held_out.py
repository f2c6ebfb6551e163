"""The held-out text of a comparison: one for all seeds, or a fold for each.

With a fold for each, every held-out token was read by the models of one seed. What looks at the text itself (where the
arrow lives, by class of token, by document) then takes the folds one behind the other, as one text that one seed has
read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.config import Config
from modules.data.token_file import TokenFile, open_tokens
from modules.data.windows import Windows, folds_in
from modules.measurement.evaluation import held_out_ids
from modules.system.errors import UserError


@dataclass(frozen=True)
class HeldOutText:
    """windows: those that all seeds have; or those of each seed's fold, in order of seeds."""

    windows: tuple[Windows, ...]

    @property
    def folds(self) -> bool:
        """Whether each seed has a fold of its own."""
        return len(self.windows) > 1

    @property
    def token_file(self) -> TokenFile:
        return self.windows[0].token_file

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.windows[0].length

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first token of each fold."""
        return tuple(each.first for each in self.windows)

    @property
    def tokens(self) -> np.ndarray:
        """The place in the file of each held-out token. [1 or folds, windows x tokens]"""
        return np.stack([each.first + np.arange(each.count * each.length) for each in self.windows])

    def ids(self) -> np.ndarray:
        """The held-out tokens in text order. [windows, tokens]"""
        return self.laid_out(np.stack([held_out_ids(each) for each in self.windows]))[0]

    def laid_out(self, of_seeds: np.ndarray) -> np.ndarray:
        """What belongs to the held-out text of each seed, [seeds, n, ...], in text order: as it is, or, of folds, [1,
        all, ...]."""
        if not self.folds:
            return of_seeds
        return np.concatenate(of_seeds[np.argsort(self.firsts)])[None]


def held_out_text(windows: Sequence[Windows], seeds: Sequence[int]) -> HeldOutText:
    """That of runs which have held out these windows, by seed. UserError where some seeds have the same and others
    have not."""
    seed_of = {each.first: seed for each, seed in zip(windows, seeds, strict=True)}
    if len(seed_of) == 1:
        return HeldOutText((windows[0],))
    for each, seed in zip(windows, seeds, strict=True):
        if seed_of[each.first] != seed:
            raise UserError(
                f"{each.token_file.path}: seeds {seed} and {seed_of[each.first]} hold out the same fold, and others do "
                "not: expected a fold for each seed; compare fewer of them, or train with a smaller held_out_tokens"
            )
    return HeldOutText(tuple(windows))


def check_folds(runs: Sequence[Config]) -> None:
    """UserError where a measurement of these runs has more seeds than its data have folds to hold out."""
    seeds: dict[tuple[str, int], set[int]] = {}
    for run in runs:
        if run.folds_by_seed:
            data = run.dataset_path, run.cut.held_out_tokens
            seeds.setdefault(data, set()).add(run.training_params.seed)
    for (path, held_out_tokens), of_data in seeds.items():
        n_tokens = len(open_tokens(path).tokens)
        folds = folds_in(n_tokens, held_out_tokens)
        if folds and len(of_data) > folds:  # with none the run says what is missing
            raise UserError(
                f"{path}: expected at most {folds} seeds, as its {n_tokens:,} tokens have so many folds of "
                f"{held_out_tokens:,}, found {len(of_data)}; take fewer (--seeds, --max_seeds), or a smaller "
                "held_out_tokens"
            )
