"""What the user sees of runs that are trained side by side: in a terminal a bar for all and one for each that runs; in
a log a line a minute. What each is at is read from its own metrics."""

import functools
import time
from collections.abc import Sequence
from typing import Protocol

from modules.config import Config
from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Cut, split
from modules.system.console import Bar, bar, on_terminal
from modules.system.errors import UserError
from modules.training.metrics import newest_entry
from modules.training.resume import Files
from modules.training.run import last_step_of

LOOK_SECONDS = 1.0  # from one look into the metrics to the next


class Watched(Protocol):
    """A run that is watched."""

    name: str
    config: Config
    files: Files


class Progress:
    """The bar of all runs, and what each of them is at. line_seconds: between the lines in a log; None for a minute."""

    def __init__(self, n_runs: int, **options):
        self._all = bar(total=n_runs, desc="training", unit="run", **options)
        self._each: dict[str, Bar] = {}
        self._next = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for line in self._each.values():
            line.close()
        self._all.close()

    def count(self, finished: bool) -> None:
        """One has ended."""
        self._all.update(finished)

    def show(self, running: Sequence[Watched]) -> None:
        """Show what these are at, if it is time to look."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        at = {run.name: (newest_entry(run.files.metrics), last_step(run.config)) for run in running}
        if not on_terminal():
            self._all.set_postfix_str("; ".join(in_words(name, *each) for name, each in at.items()))
            return
        for name in self._each.keys() - at.keys():
            self._each.pop(name).close()
        for name, (entry, last) in at.items():
            if name not in self._each:
                self._each[name] = bar(desc=name, total=last, unit="step", leave=False, dynamic_ncols=True)
            if entry is not None:
                line = self._each[name]
                if line.n == 0:  # its speed is that of the steps which are seen
                    line.initial, line.start_t = entry["step"], time.time()
                line.n = entry["step"]
                line.set_postfix_str(f"loss {entry['loss']:.4f}, {entry['tokens_per_s']:,.0f} tokens/s")


def in_words(name: str, entry: dict | None, last: int | None) -> str:
    """What a run is at: "demo_forward_seed0 400/1,000 loss 4.1234"."""
    if entry is None:
        return f"{name} begins"
    return f"{name} {entry['step']:,}{f'/{last:,}' if last else ''} loss {entry['loss']:.4f}"


def last_step(config: Config) -> int | None:
    """The step at which a run ends; None where its data do not say: it will tell the error itself."""
    if config.training_params.steps_to_train or config.optim_params.cooldown:
        return last_step_of(config, 0)
    windows = _training_windows(config.dataset_path, config.cut)
    return None if windows is None else last_step_of(config, windows)


@functools.cache
def _training_windows(path: str, cut: Cut) -> int | None:
    """Windows of an epoch: once for all orders and seeds."""
    try:
        return len(split(open_tokens(path), cut, READ_FORWARD)[0])
    except (UserError, OSError):
        return None
