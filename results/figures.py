"""The map: what the reports of this folder show together, a figure a question."""

from collections.abc import Callable, Sequence
from statistics import mean

from matplotlib.figure import Figure

from modules.plots import DIRECTION_COLOURS, label, new_axes, new_panels
from results.measurements import (
    CIRCUIT_FLOORS,
    CIRCUIT_LINE,
    PAPER,
    PAPER_CIRCUIT_LINE,
    PAPER_CIRCUITS,
    PUBLISHED,
    PUBLISHED_CONTEXTS,
    above_floor,
    arrow_of_time,
    comparisons_of,
    measured,
)

ARROW = "backward - forward\n(% of the forward loss)"
OURS, OTHERS = "#000000", "#999999"
Line = tuple[Sequence[float], Sequence[float], Sequence[tuple[float, float]]]  # x, percent, its intervals


def called(comparison: dict) -> str:
    """What a measurement is called in a figure."""
    return f"{label(comparison['name'])}, {comparison['compared']['parameters'] / 1e6:.1f} M"


def arrows() -> Figure:
    """The half of each arrow that turns round with the text, with its interval, and hollow the half that does not; what
    others found, whole, below."""
    figure, axes = new_axes("The arrow of time, with 95 % intervals", ARROW.replace("\n", " "), "")
    names: list[str] = []

    def draw(value: float, both: tuple[float, float] | None, colour: str, fill: str = "full") -> None:
        axes.errorbar(
            [value],
            [len(names)],
            xerr=reach_of([value], [both]) if both else None,
            fmt="o",
            color=colour,
            fillstyle=fill,
            markersize=4,
            capsize=3,
            linewidth=1.4,
        )

    for _, each in measured(orders=False):
        if each["control"] and (stays := each["control"]["stays"]):
            draw(stays["value"], stays["both"], OTHERS, fill="none")
        draw(arrow_of_time(each)["value"], arrow_of_time(each)["both"], OURS)
        names.append(called(each))
    for study, size, percent, both in PUBLISHED:
        draw(percent, both, OTHERS)
        names.append(f"{study}, {size:g} M")
    figure.set_figheight(1.4 + 0.28 * len(names))
    axes.axvline(0, color=OURS, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.invert_yaxis()
    return figure


def by_size() -> Figure:
    """The arrow against the number of parameters: English, ours and what others found."""
    figure, axes = new_axes("The arrow by model size, English, 95 % intervals", "parameters", ARROW)
    series: dict[str, list[tuple[float, float, tuple[float, float] | None]]] = {}
    for name in ("docstrings", "english"):
        for each in comparisons_of(name):
            percent = each["arrow"]["percent"]
            point = (each["compared"]["parameters"], percent["value"], percent["both"])
            series.setdefault(f"{name}, context {each['held_out']['context']}", []).append(point)
    for study, size, percent, both in PUBLISHED:
        series.setdefault(study, []).append((size * 1e6, percent, both))
    for number, (name, points) in enumerate(series.items()):
        parameters, values, intervals = zip(*sorted(points), strict=True)
        shifted = [count * 1.03**number for count in parameters]  # keeps error bars at one place apart
        reach = reach_of(values, [both or (value, value) for value, both in zip(values, intervals, strict=True)])
        axes.errorbar(shifted, values, yerr=reach, marker="o", capsize=3, markersize=4, linewidth=1.2, label=name)
    axes.axhline(0, color=OURS, linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([10**power for power in range(5, 10)], ["0.1 M", "1 M", "10 M", "100 M", "1,000 M"])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return figure


def reach_of(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> list[list[float]]:
    """How far each interval reaches below and above its value, as matplotlib wants it."""
    below = [value - low for value, (low, _) in zip(values, intervals, strict=True)]
    return [below, [high - value for value, (_, high) in zip(values, intervals, strict=True)]]


def by_training() -> Figure:
    """The arrow at each validation, against the tokens seen."""

    def line(each: dict) -> Line:
        per_step = each["compared"]["tokens_seen"] / each["compared"]["steps"] / 1e6
        steps, values, intervals = line_of(each, "by_step", "step", each["convergence"]["points"])
        return [step * per_step for step in steps], values, intervals

    return in_panels("The arrow during training, 95 % intervals", "million tokens seen", lines_by_text(line))


def by_context() -> Figure:
    """The arrow of the same models in shorter windows."""
    lines = lines_by_text(lambda each: line_of(each, "by_length", "length", each["by_length"]))
    paper = list(PUBLISHED_CONTEXTS.values())
    lines[PAPER] = {"405 M, one for each context": (list(PUBLISHED_CONTEXTS), paper, [(each, each) for each in paper])}
    figure = in_panels("The arrow in shorter windows, 95 % intervals", "tokens in a window", lines)
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 8, 32, 128, 512], ["2", "8", "32", "128", "512"])
    return figure


def line_of(comparison: dict, halves: str, key: str, rows: Sequence[dict]) -> Line:
    """The half that turns round with the text: that of the control's `halves`, or all of the arrow in `rows`, which
    have `key`."""
    control = comparison["control"]
    if control and not control["exact"]:
        turns = [each["turns"] for each in control[halves]]
        return (
            [each["at"] for each in control[halves]],
            [each["value"] for each in turns],
            [each["both"] for each in turns],
        )
    return [row[key] for row in rows], [row["percent"] for row in rows], [row["interval"] for row in rows]


def lines_by_text(line: Callable[[dict], Line]) -> dict[str, dict[str, Line]]:
    """The line of each measured arrow, by its text."""
    lines: dict[str, dict[str, Line]] = {}
    for _, each in measured(orders=False):
        lines.setdefault(each["compared"]["text"], {})[called(each)] = line(each)
    return lines


def in_panels(title: str, x_label: str, lines: dict[str, dict[str, Line]]) -> Figure:
    """A panel for each text, in it a line with its band for each measurement."""
    figure, panels = new_panels(title, x_label, ARROW, len(lines))
    for axes, (text, of_text) in zip(panels, lines.items(), strict=True):
        axes.set_title(label(text), fontsize=10)
        for name, (x, values, intervals) in of_text.items():
            (drawn,) = axes.plot(x, values, marker="o", markersize=3, linewidth=1.2, label=name)
            low, high = zip(*intervals, strict=True)
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        axes.axhline(0, color=OURS, linewidth=0.8)
        axes.legend(fontsize=6.5)
    return figure


def orders() -> Figure:
    """How much harder each order of reading is than forward."""
    found: dict[str, list[dict]] = {}
    for name, each in measured(orders=True):
        found.setdefault(name, []).append(each)
    names = list(dict.fromkeys(each["order"] for of_text in found.values() for each in of_text))
    figure, axes = new_axes("Orders of reading, 95 % intervals", "loss above forward (% of the forward loss)", "")
    for number, of_text in enumerate(found.values()):
        places = [names.index(each["order"]) + 0.2 * (number - (len(found) - 1) / 2) for each in of_text]
        percents = [each["arrow"]["percent"] for each in of_text]
        values = [percent["value"] for percent in percents]
        reach = reach_of(values, [percent["both"] for percent in percents])
        text = of_text[0]["compared"]["text"]
        axes.errorbar(values, places, xerr=reach, fmt="o", markersize=4, capsize=3, label=label(text))
    axes.axvline(0, color=OURS, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    return figure


def circuits() -> Figure:
    """Loss against the ones beside the identity, above the floor that no model can pass, in nats a line: means, and
    each seed as a dot."""
    figure, axes = new_axes("Circuits of 25 bits", "ones beside the identity", "loss above the floor (nats per line)")
    found = comparisons_of("circuits")
    ones = [int(each["name"].rpartition("_")[2]) for each in found]
    for direction, marker, aside in (("forward", ">", -0.5), ("backward", "<", 0.5)):
        colour = DIRECTION_COLOURS[direction]
        above = [[CIRCUIT_LINE * each for each in above_floor("circuits", every, direction)] for every in found]
        axes.plot(ones, [mean(seeds) for seeds in above], marker=marker, color=colour, label=f"ours, {direction}")
        for place, seeds in zip(ones, above, strict=True):
            axes.plot([place + aside] * len(seeds), seeds, ".", color=colour, markersize=4, alpha=0.5)
    paper = [PAPER_CIRCUIT_LINE * loss - CIRCUIT_LINE * CIRCUIT_FLOORS[ones] for ones, loss in PAPER_CIRCUITS.items()]
    axes.plot(list(PAPER_CIRCUITS), paper, marker="s", color=OTHERS, label="the paper's, forward (from a drawing)")
    axes.axhline(0, color=OURS, linewidth=1)
    axes.legend(fontsize="small")
    return figure
