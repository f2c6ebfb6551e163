"""How our pictures look, and the picture of one run.

Forward is blue and backward vermilion everywhere: two colours of Okabe and Ito's palette which stay apart for
colour-blind eyes and, printed, in grey. Figures are built without pyplot: it keeps global state, and opens windows.
The same numbers give the same bytes, so committed figures change only when results do.

Names stand in a picture as they are: matplotlib would read dollar signs as a formula and leave a name that begins with
"_" out of a legend.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["MPLBACKEND"] = (
    "agg"  # nothing is shown on a screen, and a name that matplotlib does not know would be an error at its import
)
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

from modules.system.console import one_line
from modules.system.files import replacing
from modules.system.names import escaped

DIRECTION_COLOURS = {"forward": "#0072B2", "backward": "#D55E00"}
OTHER_ORDER_COLOUR = "#009E73"  # bluish green, of the same palette
FONT = "DejaVu Sans"  # matplotlib brings it along: the same on every machine
LABEL_LENGTH = 40  # characters of a name
STYLE = {
    "font.family": FONT,
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "arrow",
}
SIZE = (6.4, 4.2)  # inches
DPI = 150


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg."""
    for text in figure.findobj(Text):  # also where STYLE was not in force yet when it was made
        text.set_parse_math(False)
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = stem.with_name(f"{stem.name}.{kind}")
        with replacing(path) as temporary, matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
        paths.append(path)
    return paths


def new_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def new_panels(title: str, x_label: str, y_label: str, count: int) -> tuple[Figure, list[Axes]]:
    """`count` axes with common scales, three in a row."""
    rows = math.ceil(count / 3)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1 + 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    figure.suptitle(title)
    figure.supxlabel(x_label)
    figure.supylabel(y_label)
    return figure, list(grid.flat[:count])


def label(name: str) -> str:
    """A name as it can be drawn: in one line, at most LABEL_LENGTH long, what the font lacks as Python writes it
    (\\u4e2d)."""
    text = "".join(character if ord(character) in drawable() else escaped(character) for character in one_line(name))
    half = (LABEL_LENGTH - 1) // 2
    return text if len(text) <= LABEL_LENGTH else f"{text[:half]}…{text[-half:]}"


@functools.cache
def drawable() -> frozenset[int]:
    """The characters that the font has."""
    return frozenset(get_font(findfont(FONT)).get_charmap())


def run_curve(name: str, order: str, entries: Sequence[dict]) -> Figure:
    """Training and held-out loss of one run against the step, from the entries of its metrics file."""
    figure, axes = new_axes(label(name), "step", "loss (nats per token)")
    for split, words, alpha, marker in (("train", "training", 0.4, None), ("valid", "held out", None, "o")):
        points = [(entry["step"], entry["loss"]) for entry in entries if entry["split"] == split]
        axes.plot(
            [step for step, _ in points],
            [loss for _, loss in points],
            color=DIRECTION_COLOURS.get(order, OTHER_ORDER_COLOUR),
            label=words,
            alpha=alpha,
            marker=marker,
            markersize=3.5,
        )
    focus_on_the_end(axes, [entry["loss"] for entry in entries])
    axes.legend()
    return figure


def focus_on_the_end(axes: Axes, losses: Sequence[float]) -> None:
    """Leave out the steep fall of the first steps, which would press the two curves onto each other."""
    if losses:
        low, typical, high = min(losses), float(np.median(losses)), max(losses)
        top = min(high, typical + 2 * (typical - low))
        if top > low:
            axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
