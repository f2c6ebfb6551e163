"""The figures of a report, from its comparisons. Each function returns a matplotlib Figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modules.data.orders import BACKWARD
from modules.measurement.comparison import Comparison, called
from modules.plots import DIRECTION_COLOURS, SIZE, focus_on_the_end, label, new_axes
from modules.system.names import distinct

SERIES_COLOURS = ["#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00"]
MARKERS = "osD^vP*"


# The orders of one config
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of the two orders of a comparison, as the figures of all orders of a config show it."""

    comparison: Comparison
    order: str
    field: str  # where the comparison has it
    style: dict


def sides_of(comparisons: Sequence[Comparison]) -> dict[str, Side]:
    """Each order of a config by its label, the reference first: once, though all comparisons have it."""
    found = {}
    for comparison in comparisons:
        for order, field in ((comparison.reference, "forward"), (comparison.order, "backward")):
            name = f"{order}, of {comparison.in_one_model}" if comparison.in_one_model else order
            found.setdefault(name, (comparison, order, field))
    others = iter([style for style in series_styles() if style["color"] not in DIRECTION_COLOURS.values()] * 2)
    styles = {
        name: {"color": DIRECTION_COLOURS[name], "marker": "o"} if name in DIRECTION_COLOURS else next(others)
        for name in found
    }
    return {name: Side(*of, styles[name]) for name, of in found.items()}


def loss_curves(comparisons: Sequence[Comparison]) -> Figure:
    """Held-out loss (lines with dots) and training loss (faint) of all orders of a config against the step, a line a
    seed."""
    figure, axes = new_axes(f"{label(comparisons[0].config)}: loss", "step", "loss (nats per token)")
    sides = {name: side for name, side in sides_of(comparisons).items() if side.comparison.curves}
    shown = []
    for number in range(max(len(side.comparison.curves) for side in sides.values())):
        for name, side in sides.items():
            if number >= len(side.comparison.curves):
                continue
            curve, colour = side.comparison.curves[number][side.order], side.style["color"]
            axes.plot(curve.train.step, curve.train.loss, color=colour, alpha=0.25, linewidth=1)
            axes.plot(
                curve.valid.step,
                curve.valid.loss,
                color=colour,
                marker=side.style["marker"],
                markersize=3.5,
                label=f"{name}, held out" if number == 0 else None,
            )
            shown += curve.train.loss + curve.valid.loss
    focus_on_the_end(axes, shown)
    if len(sides) <= 4:
        axes.legend()
    else:
        figure.legend(fontsize="small", loc="outside lower center", ncols=2, frameon=False)
    return figure


def differences_of_orders(comparisons: Sequence[Comparison]) -> Figure:
    """How much harder each order of a config is than the reference, in percent, with 95 % intervals."""
    figure, axes = arrow_axes(f"{label(comparisons[0].config)}: orders of reading", "", comparisons)
    names = [label(f"{c.order}, of {c.in_one_model}" if c.in_one_model else c.order) for c in comparisons]
    draw_with_intervals(axes, range(len(names)), comparisons, marker="o", color="black", linestyle="none")
    axes.set_xticks(range(len(names)), distinct(names), rotation=30, ha="right", fontsize="small")
    axes.set_xlim(-0.5, len(names) - 0.5)
    return figure


def losses_by_tokens_read(comparisons: Sequence[Comparison]) -> Figure:
    """The loss of each order of a config against the number of tokens that were read before, grouped as in
    `arrow_by_tokens_seen`."""
    title = f"{label(comparisons[0].config)}: loss by what has been read"
    figure, axes = new_axes(title, "tokens read before the predicted one", "loss (nats per token)")
    handles, names = [], []
    for name, side in sides_of(comparisons).items():
        if (by_context := side.comparison.by_context) is None:
            continue
        losses = getattr(by_context, side.field)
        groups = growing_groups(len(losses))
        seen = group_means(by_context.tokens_seen, groups)
        handles += axes.plot(seen, group_means(losses, groups), markersize=4, **side.style)
        names.append(label(name))
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    add_legend(figure, axes, handles, names)
    return figure


def losses_by_place(comparisons: Sequence[Comparison]) -> Figure:
    """The loss of each order of a config at each place of a window in the text."""
    title = f"{label(comparisons[0].config)}: loss by place in the text"
    figure, axes = new_axes(title, "place in the window", "loss (nats per token)")
    handles, names = [], []
    for name, side in sides_of(comparisons).items():
        if (by_position := side.comparison.by_position) is None:
            continue
        handles += axes.plot(
            by_position.position,
            getattr(by_position, side.field),
            markersize=3.5,
            markevery=max(1, len(by_position.position) // 16),
            linewidth=1.2,
            **side.style,
        )
        names.append(label(name))
    add_legend(figure, axes, handles, names)
    return figure


# Several comparisons
# --------------------------------------------------------------------------------------------------------------------


def arrow_by_checkpoint(comparisons: Sequence[Comparison]) -> Figure:
    """The arrow at each validation, in percent, with 95 % bands for at most two comparisons."""
    figure, axes = arrow_axes("The arrow while training", "step", comparisons)
    handles = []
    for comparison, style in zip(comparisons, series_styles(), strict=False):
        assert comparison.convergence is not None  # report.py leaves the others out
        points = comparison.convergence.points
        steps = [point.step for point in points]
        handles += axes.plot(steps, [point.percent for point in points], markersize=4, **style)
        if len(comparisons) <= 2 and points:
            low, high = zip(*(point.interval for point in points), strict=True)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    add_legend(figure, axes, handles, [label(comparison.name) for comparison in comparisons])
    return figure


def arrow_by_length(comparisons: Sequence[Comparison]) -> Figure:
    """The arrow of the same models when they read windows of 2, 4 ... tokens of the held-out text, in percent, with 95
    % intervals."""
    figure, axes = arrow_axes("The arrow by context, from one pair a seed", "tokens in a window", comparisons)
    handles, lengths = [], set()
    for number, (comparison, style) in enumerate(zip(comparisons, series_styles(), strict=False)):
        rows = comparison.by_length
        lengths |= {row.length for row in rows}
        values = np.array([row.percent for row in rows])
        low, high = np.array([row.interval for row in rows]).T
        shift = 1 + 0.03 * (number - (len(comparisons) - 1) / 2)  # keeps error bars at one place apart
        handles.append(
            axes.errorbar(
                [row.length * shift for row in rows],
                values,
                yerr=[values - low, high - values],
                capsize=3,
                markersize=5,
                **style,
            )
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)], minor=False)
    axes.minorticks_off()
    add_legend(figure, axes, handles, [label(comparison.name) for comparison in comparisons])
    return figure


def arrow_by_tokens_seen(comparisons: Sequence[Comparison]) -> Figure:
    """The arrow against the number of text tokens that both models have seen, in percent, with 95 % bands for single
    comparisons.

    Neighbouring numbers are taken together, in groups which grow with the number: the first tokens differ most, the
    last hardly.
    """
    what = "text tokens seen before the predicted one"
    figure, axes = arrow_axes("The arrow by what has been seen", what, comparisons)
    handles = []
    for comparison, style in zip(comparisons, series_styles(), strict=False):
        curve = comparison.by_context
        assert curve is not None  # report.py leaves the others out
        groups = growing_groups(len(curve.arrow))
        forward = group_means(curve.forward, groups)
        seen, percent = group_means(curve.tokens_seen, groups), 100 * group_means(curve.arrow, groups) / forward
        handles += axes.plot(seen, percent, markersize=4, **style)
        if len(comparisons) == 1:
            # The largest of the group's errors, not their mean over a root: tokens of one window are not independent.
            half = 100 * 1.96 * np.array([curve.arrow_se[start:stop].max() for start, stop in groups]) / forward
            axes.fill_between(seen, percent - half, percent + half, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    add_legend(figure, axes, handles, [label(comparison.name) for comparison in comparisons])
    return figure


def growing_groups(n: int) -> list[tuple[int, int]]:
    """0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23 … up to n, as (start, stop)."""
    edges = [0]
    while edges[-1] < n:
        edges.append(edges[-1] + max(1, 2 ** edges[-1].bit_length() // 4))
    edges[-1] = n
    return list(pairwise(edges))


def group_means(values: np.ndarray, groups: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([values[start:stop].mean() for start, stop in groups])


def arrow_by_context_length(comparisons: Sequence[Comparison]) -> Figure:
    """Percent against `attn_length`, a line for each model size and text: the paper's figure."""
    return arrow_by(
        comparisons,
        "The arrow by context length",
        "context length (tokens)",
        lambda c: c.context,
        lambda c: (c.text, c.size + orders_in_words(c)),
    )


def arrow_by_model_size(comparisons: Sequence[Comparison]) -> Figure:
    """Percent against the number of parameters, a line for each context length and text."""
    return arrow_by(
        comparisons,
        "The arrow by model size",
        "parameters (without positions)",
        parameters_of,
        lambda c: (c.text, f"context {c.context}{orders_in_words(c)}"),
    )


def parameters_of(comparison: Comparison) -> int:
    assert comparison.parameters is not None  # report.py leaves the others out
    return comparison.parameters


def arrow_by(
    comparisons: Sequence[Comparison],
    title: str,
    x_label: str,
    x_of: Callable[[Comparison], float],
    series_of: Callable[[Comparison], tuple[str, str]],
) -> Figure:
    """A line for each series: comparisons with the same text and the same of what `series_of` says second."""
    figure, axes = arrow_axes(title, x_label, comparisons)
    series = {}
    for comparison in sorted(comparisons, key=x_of):
        series.setdefault(series_of(comparison), []).append(comparison)
    handles = []
    for number, (members, style) in enumerate(zip(series.values(), series_styles(), strict=False)):
        shift = 1 + 0.015 * (number - (len(series) - 1) / 2)  # keeps error bars at one place apart
        handles.append(draw_with_intervals(axes, [x_of(member) * shift for member in members], members, **style))
    ticks = sorted({x_of(comparison) for comparison in comparisons})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    add_legend(figure, axes, handles, [f"{label(text)}, {rest}" for text, rest in series])
    return figure


def arrow_by_text(comparisons: Sequence[Comparison]) -> Figure:
    """Percent for each text (language), a series for each model size and context length."""
    figure, axes = arrow_axes("The arrow by text", "", comparisons)
    texts = sorted({comparison.text for comparison in comparisons})
    series = {}
    for comparison in comparisons:
        what = f"{comparison.size}, context {comparison.context}{orders_in_words(comparison)}"
        series.setdefault(what, []).append(comparison)
    handles = []
    for number, (members, style) in enumerate(zip(series.values(), series_styles(), strict=False)):
        shift = 0.12 * (number - (len(series) - 1) / 2)
        handles.append(
            draw_with_intervals(
                axes, [texts.index(m.text) + shift for m in members], members, **style, linestyle="none"
            )
        )
    axes.set_xticks(range(len(texts)), distinct(map(label, texts)))
    axes.set_xlim(-0.5, len(texts) - 0.5)
    add_legend(figure, axes, handles, list(series))
    return figure


def orders_in_words(comparison: Comparison) -> str:
    """What a legend says of the orders: nothing of the two directions."""
    return "" if comparison.is_of_directions else called("", *comparison.which)


def arrow_axes(title: str, x_label: str, comparisons: Sequence[Comparison]) -> tuple[Figure, Axes]:
    orders = {(c.reference, c.order) for c in comparisons}
    reference, order = orders.pop() if len(orders) == 1 else (comparisons[0].reference, "other order")
    what = "arrow" if order == BACKWARD else "difference"
    figure, axes = new_axes(title, x_label, f"{what}: {order} - {reference}\n(% of the {reference} loss)")
    axes.axhline(0, color="black", linewidth=0.8)
    return figure, axes


def add_legend(figure: Figure, axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Name the lines, of which there are no more than styles. Where there is room: among the lines for a few, below the
    axes for many."""
    names = distinct(names[: len(handles)])
    if len(names) <= 4:
        axes.legend(handles, names, fontsize="small")
    else:
        rows = math.ceil(len(names) / 2)
        figure.set_figheight(SIZE[1] + 0.2 * max(0, rows - 10))  # many would leave no room for the axes
        figure.legend(handles, names, fontsize="small", loc="outside lower center", ncols=2, frameon=False)


def draw_with_intervals(axes: Axes, x: Sequence[float], comparisons: Sequence[Comparison], **style) -> Artist:
    """Arrows in percent with their 95 % intervals over both windows and seeds; what a legend shows of them."""
    percents = [comparison.arrow.percent for comparison in comparisons]
    values = np.array([percent.value for percent in percents])
    low, high = np.array([percent.both for percent in percents]).T
    # pyrefly: ignore[bad-return] (legends take it; that no stub says)
    return axes.errorbar(x, values, yerr=[values - low, high - values], capsize=3, markersize=5, **style)


def series_styles() -> list[dict]:
    """Colour and marker of each line of a figure, repeating after 7 x 7."""
    n = len(SERIES_COLOURS)
    return [{"color": SERIES_COLOURS[i % n], "marker": MARKERS[(i + i // n) % n]} for i in range(n * n)]
