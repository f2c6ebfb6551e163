"""What the user sees while a text is tokenized: one bar, and lines that do not tear it."""

import sys
import time
from pathlib import Path

from modules.system.console import bar, tell, warn_once
from modules.tok_utils.cuts import LONGEST_RUN, Piece
from modules.tok_utils.text_source import TextSource

MOST_WARNINGS = 20
FORECAST_S = 2.0  # of work after which it is said how long all will take


def say(message: str) -> None:
    """A line on stderr, above the bar if there is one."""
    tell(message, sys.stderr)


def readable(size: float) -> str:
    """1234567 -> "1.2 MB"."""
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"


def lasting(seconds: float) -> str:
    """90 -> "2 min"."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


class Progress:
    """The bar: bytes of text, MB/s, time left, tokens/s. Of several processes the first shows its own part."""

    def __init__(self, name: str, texts: list[Path], rank: int, world_size: int):
        self._sizes = [text.stat().st_size for text in texts]
        self._world_size = world_size
        self._name, self._tokens, self._warnings, self._began = name, 0, 0, time.monotonic()
        self._skipped, self._done, self._said = 0, 0, rank > 0
        whose = f", process 1 of {world_size}" if world_size > 1 else ""
        self._bar = bar(desc=f"tokenize {name}{whose}", unit="B", unit_scale=True, disable=rank > 0, smoothing=0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def estimate(self, text: int, source: TextSource) -> None:
        """Take the size of a text as known by now (of a compressed one that is a guess until its end)."""
        self._sizes[text] = source.estimated_size()
        self._bar.total = sum(self._sizes) // self._world_size

    def skip(self, piece: Piece) -> None:
        """A piece done in an earlier run: counts as done, not as speed."""
        self._skipped += piece.stop - piece.start
        if not self._bar.disable:  # else it has no such count
            self._bar.initial += piece.stop - piece.start
        self._bar.update(piece.stop - piece.start)

    def count(self, piece: Piece, tokens: int) -> None:
        """A piece done now."""
        self._tokens += tokens
        self._bar.set_postfix_str(f"{self._tokens / (time.monotonic() - self._began):,.0f} tokens/s", refresh=False)
        self._bar.update(piece.stop - piece.start)
        self._done += piece.stop - piece.start
        seconds = time.monotonic() - self._began
        if not self._said and seconds > FORECAST_S:
            self._said, rate = True, self._done / seconds
            left = max(0, sum(self._sizes) // self._world_size - self._skipped - self._done) / rate
            say(
                f"{self._name}: {readable(sum(self._sizes))} of text, {readable(rate)} a second: "
                f"about {lasting(left)} more"
            )

    def warn_of_cuts(self, text: Path, positions: list[int]) -> None:
        """Say where a text was cut without a safe place to; the first MOST_WARNINGS times."""
        for position in positions[: MOST_WARNINGS - self._warnings]:
            self._warnings += 1
            more = " (not said again for further places)" if self._warnings == MOST_WARNINGS else ""
            warn_once(
                f"{text}: more than {LONGEST_RUN} bytes without a place to cut, so cut at byte {position}; "
                f"the ids around it may differ from those of the uncut text{more}"
            )
