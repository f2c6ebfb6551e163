"""What a measurement says, for people (report.md and pictures) and for programs: arrow.json holds the comparisons and
contrasts of comparison.py as they are, and so everything in report.md."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from modules import plots
from modules.data.orders import BACKWARD, FORWARD
from modules.measurement import figures
from modules.measurement.arrow import ClassRow, Interval
from modules.measurement.comparison import Comparison, Control, Halves, HeldOut, LengthRow
from modules.measurement.convergence import Point
from modules.measurement.documents import Largest
from modules.measurement.sweep import Contrast
from modules.measurement.token_classes import WHAT_CLASSES_ARE, class_cells, class_header
from modules.system import console
from modules.system.files import replacing
from modules.system.names import as_file_systems_see, distinct, file_name, in_markdown, link_to


def write_report(
    folder: str | os.PathLike,
    comparisons: Sequence[Comparison],
    command: str | None = None,
    contrasts: Sequence[Contrast] = (),
) -> dict[str, Path]:
    """Write arrow.json, the figures (PNG and SVG) and report.md into `folder`, each whole or not at all.

    Returns the path of each: "report", "json", and the PNG of each figure under its name in `draw_all`.
    """
    folder = Path(folder)
    comparisons = sorted(named_apart(comparisons), key=lambda c: (c.text, c.parameters or 0, c.context))
    held = {
        "command": command,
        "comparisons": [asdict(each) for each in comparisons],
        "contrasts": [asdict(each) for each in contrasts],
    }
    write_text(folder / "arrow.json", json.dumps(held, indent=1, allow_nan=False, default=np.ndarray.tolist) + "\n")
    drawn = console.attempt("the pictures of the report", lambda: draw_all(comparisons)) or {}
    stems = [file_name(name, ".png").removesuffix(".png") for name in distinct(drawn, as_file_systems_see)]
    saved = {
        name: console.attempt(
            f"the picture {stem}.png", lambda figure=figure, stem=stem: plots.save(figure, folder / stem)[0]
        )
        for (name, figure), stem in zip(drawn.items(), stems, strict=True)
    }
    pictures = {name: path for name, path in saved.items() if path is not None}
    write_text(
        folder / "report.md",
        markdown(comparisons, {name: path.name for name, path in pictures.items()}, command, contrasts),
    )
    return {"report": folder / "report.md", "json": folder / "arrow.json", **pictures}


def named_apart(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, configs and names that come again with a number behind them. A config comes again where its
    orders do."""
    before: Counter = Counter()
    keys = []
    for each in comparisons:
        keys.append((each.config, before[each.config, each.which]))
        before[each.config, each.which] += 1
    config_of = dict(zip(dict.fromkeys(keys), distinct(config for config, _ in dict.fromkeys(keys)), strict=True))
    names = distinct(comparison.name for comparison in comparisons)
    return [
        replace(comparison, name=name, config=config_of[key])
        for comparison, name, key in zip(comparisons, names, keys, strict=True)
    ]


def draw_all(comparisons: Sequence[Comparison]) -> dict[str, figures.Figure]:
    """Each figure that these comparisons have something to show in, by its name: "small-loss", "arrow-by-step"."""
    drawn = {}
    for config, of_config in by_config(comparisons).items():
        if any(comparison.curves for comparison in of_config):
            drawn[f"{config}-loss"] = figures.loss_curves(of_config)
        if has_orders(of_config):
            drawn[f"{config}-orders"] = figures.differences_of_orders(of_config)
            if any(comparison.by_context for comparison in of_config):
                drawn[f"{config}-loss-by-tokens-read"] = figures.losses_by_tokens_read(of_config)
            if any(comparison.by_position for comparison in of_config):
                drawn[f"{config}-loss-by-place"] = figures.losses_by_place(of_config)
    for name, key, draw in (
        ("arrow-by-checkpoint", "convergence", figures.arrow_by_checkpoint),
        ("arrow-by-context", "by_length", figures.arrow_by_length),
        ("arrow-by-tokens-seen", "by_context", figures.arrow_by_tokens_seen),
    ):
        if some := [comparison for comparison in comparisons if getattr(comparison, key)]:
            drawn[name] = draw(some)
    comparisons = [comparison for comparison in comparisons if comparison.parameters is not None]
    for name, aspect, draw in (
        ("arrow-by-context-length", "context", figures.arrow_by_context_length),
        ("arrow-by-model-size", "size", figures.arrow_by_model_size),
        ("arrow-by-text", "text", figures.arrow_by_text),
    ):
        if len({getattr(comparison, aspect) for comparison in comparisons}) > 1:
            drawn[name] = draw(comparisons)
    return drawn


def by_config(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each config: one, or one for each order."""
    names = dict.fromkeys(comparison.config for comparison in comparisons)
    return {name: [comparison for comparison in comparisons if comparison.config == name] for name in names}


def has_orders(comparisons: Sequence[Comparison]) -> bool:
    """Whether there are others than the two directions among those of a config."""
    return not all(comparison.is_of_directions for comparison in comparisons)


def markdown(
    comparisons: Sequence[Comparison],
    pictures: Mapping[str, str],
    command: str | None,
    contrasts: Sequence[Contrast] = (),
) -> str:
    """The whole report; `pictures` are the names of figures and of their files, which lie beside it."""
    configs = by_config(comparisons)
    own = {
        name: [f"{name}-{kind}" for kind in ("orders", "loss", "loss-by-tokens-read", "loss-by-place")]
        for name in configs
    }
    parts = ["# The arrow of time", HOW_TO_READ]
    parts += [HOW_TO_READ_ORDERS] if any(map(has_orders, configs.values())) else []
    parts += [summary(comparisons), *contrast_parts(contrasts)]
    parts += [picture(name, file) for name, file in pictures.items() if name not in sum(own.values(), [])]
    for config, of_config in configs.items():
        of_it = [picture(name, pictures[name]) for name in own[config] if name in pictures]
        sections = [section(comparison) for comparison in of_config]
        parts += [*orders_parts(of_config), *of_it, *sections] if has_orders(of_config) else [*sections, *of_it]
    if command:
        inside = max(map(len, re.findall("`+", command)), default=0)
        fence = "`" * max(3, 1 + inside)  # one as long as one in the command would end there
        parts.append(f"## Made by\n\n{fence}\n{command}\n{fence}")
    return "\n\n".join(parts) + "\n"


DIRECTIONS_HEADER = ("forward", "backward", "arrow")


def picture(name: str, file: str) -> str:
    return f"![{in_markdown(name)}]({link_to(file)})"


HOW_TO_READ = """\
The arrow is the loss of the model that reads backward minus that of the model that reads forward, on the same tokens of
the same held-out windows: positive where backward is harder. Intervals are at 95 %. *Windows*: other held-out
text, for these trained models. *Seeds*: Student's t over initial weights and orders of the training windows, on this
held-out text. *Both*: over both; the one to quote. None of them accounts for the choice of the training text.

An arrow of the text turns round when the text is reversed and tokenized afresh (the *control*). What turns with the
text is the arrow of time; what does not comes from the tokenizer and from how fast each direction is learned. An arrow
that still moves while the loss falls says which direction is learned faster, and nothing of the text. The halves are in
percent of the mean of both losses, all else in percent of the forward loss."""


HOW_TO_READ_ORDERS = """\
Where other orders of reading are compared, each is compared to one reference in the same way: its difference is its
loss minus that of the reference, in percent of the reference's loss, on the same tokens. Whatever the order, losses by
place are of the text's own places. A row that names a model of several orders compares two orders of one set of
weights."""


def orders_parts(comparisons: Sequence[Comparison]) -> list[str]:
    """All orders of a config together: loss and difference, and the losses by tokens read and by place in the text."""
    sides = figures.sides_of(comparisons)
    by_order = {
        name: next(
            (c for c in comparisons if (c.order, c.in_one_model) == (side.order, side.comparison.in_one_model)), None
        )
        for name, side in sides.items()
    }
    rows = [
        [
            name,
            len(side.comparison.compared.seeds),
            f"{getattr(side.comparison.arrow, side.field):.4f}",
            *(
                ("the reference", "", "")
                if (c := by_order[name]) is None
                else (
                    f"{c.arrow.nats.value:+.4f}",
                    f"{c.arrow.percent.value:+.2f} %",
                    interval(c.arrow.percent.both, 2),
                )
            ),
        ]
        for name, side in sides.items()
    ]
    header = ["order", "seeds", "loss (nats/token)", "difference", "in percent", "95 % (both)"]
    parts = [f"## {in_markdown(comparisons[0].config)}: orders of reading", table(header, rows)]
    for title, key, column in (
        ("Loss by tokens read before", "by_context", "tokens read"),
        ("Loss by place in the text", "by_position", "place"),
    ):
        known = figures.sides_of([c for c in comparisons if getattr(c, key)])
        if known:
            losses = [getattr(getattr(side.comparison, key), side.field) for side in known.values()]
            groups = figures.growing_groups(len(losses[0])) if key == "by_context" else eighths(len(losses[0]))
            means = zip(*(figures.group_means(each, groups) for each in losses), strict=True)
            rows = [
                [str(start) if stop == start + 1 else f"{start} to {stop - 1}", *(f"{mean:.4f}" for mean in of_group)]
                for (start, stop), of_group in zip(groups, means, strict=True)
            ]
            parts += [f"### {title}", table([column, *known], rows)]
    return parts


def eighths(n: int) -> list[tuple[int, int]]:
    """0 to n in eight parts, or as many as there are, as (start, stop)."""
    edges = sorted({n * part // 8 for part in range(9)})
    return list(pairwise(edges))


def summary(comparisons: Sequence[Comparison]) -> str:
    """A row for each comparison."""
    rows = [
        [
            c.name,
            c.text,
            c.context,
            "unknown" if c.parameters is None else f"{c.size}: {c.compared.parameters:,}",
            len(c.compared.seeds),
            f"{c.arrow.forward:.4f}",
            f"{c.arrow.backward:.4f}",
            f"{c.arrow.nats.value:+.4f}",
            f"{c.arrow.percent.value:+.2f} %",
            interval(c.arrow.percent.both, 2),
        ]
        for c in comparisons
    ]
    reference, order, arrow = ("reference", "order", "difference") if has_orders(comparisons) else DIRECTIONS_HEADER
    return table(
        [
            "config",
            "text",
            "context",
            "size",
            "seeds",
            f"{reference} (nats/token)",
            order,
            arrow,
            "in percent",
            "95 % (both)",
        ],
        rows,
    )


def contrast_parts(contrasts: Sequence[Contrast]) -> list[str]:
    """The table of contrasts, where there are any."""
    if not contrasts:
        return []
    rows = [
        [
            each.what,
            f"{each.value:+.2f}",
            f"{each.se:.2f}",
            interval(each.both, 2),
            optional(each.p, ".3f"),
            optional(each.p_holm, ".3f"),
        ]
        for each in contrasts
    ]
    return [
        "## Contrasts",
        "Differences between arrows, in percentage points, paired by seed and by stretch of text where they share "
        "them. The last column is corrected for the number of rows (Holm): only what is below 0.05 there is a finding.",
        table(["contrast", "difference", "standard error", "95 %", "p", "p (Holm)"], rows),
    ]


def held_out_in_words(comparison: Comparison) -> str:
    """How much was held out. Where others measured the losses, these may be means of windows."""
    held_out = comparison.held_out
    if held_out.context > 1:
        return f"{held_out.tokens:,} held-out tokens"
    return f"{held_out.windows:,} held-out windows"


def checks_in_words(comparison: Comparison) -> list[str]:
    """What control and convergence say of an arrow, in sentences."""
    control, convergence = comparison.control, comparison.convergence
    if convergence is None:
        return ["These are losses alone: neither a control nor convergence is known."]
    if control is None:
        said = (
            "Without a control: how much of this turns round with the text is not known (--control trains the reversed "
            "text)."
        )
    else:
        is_arrow = {comparison.reference, comparison.order} == {FORWARD, BACKWARD}
        said = (
            f"The half that turns round with the text{', the arrow of time,' if is_arrow else ''} is "
            f"{control.turns.value:+.2f} % ({interval(control.turns.both, 2)}; {control.turns_nats.value:+.4f} nats)"
        )
        if control.exact:
            said += ": the tokenizer has no direction, so all of the arrow turns."
        else:
            assert control.stays and control.stays_nats and control.arrow  # a control that was trained has them
            said += (
                f", the half that does not {control.stays.value:+.2f} % ({interval(control.stays.both, 2)}; "
                f"{control.stays_nats.value:+.4f} nats); the reversed text's arrow is {control.arrow.value:+.2f} % "
                f"({interval(control.arrow.both, 2)})."
            )
    return [said, convergence.verdict, f"{convergence.passes:.2f} passes over the text.", *convergence.warnings]


def section(comparison: Comparison) -> str:
    """Everything about one comparison."""
    arrow, held_out, convergence = comparison.arrow, comparison.held_out, comparison.convergence
    orders, what = comparison.losses, "arrow" if comparison.order == BACKWARD else "difference"
    parts = [
        f"## {in_markdown(comparison.name)}",
        arrow.verdict,
        "\n".join(f"- {in_markdown(line)}" for line in (*checks_in_words(comparison), arrow.outlook)),
        table(
            ["direction" if comparison.is_of_directions else "order", "nats per token", "bits per byte", "perplexity"],
            [
                [order, f"{loss.nats_per_token:.4f}", optional(loss.bits_per_byte, ".4f"), f"{loss.perplexity:.2f}"]
                for order, loss in comparison.losses.items()
            ],
        ),
        table(
            [what, "value", "95 % windows", "95 % seeds", "95 % both", "standard error", "p"],
            [
                [
                    unit,
                    f"{each.value:+.{digits}f}",
                    *(interval(ends, digits) for ends in (each.windows, each.seeds, each.both)),
                    f"{each.se:.{digits}f}",
                    optional(each.p, ".3f"),
                ]
                for unit, each, digits in (("nats per token", arrow.nats, 4), ("percent", arrow.percent, 2))
            ],
        ),
        (
            f"{held_out.tokens:,} held-out tokens in {held_out.windows:,} windows of {held_out.context}, "
            f"{what_counts_as_one(held_out)}. Paired standard error over single windows: {arrow.paired_se:.4f} nats "
            "per token."
        ),
    ]
    if control := comparison.control:
        parts.append(halves_table(control))
    if len(arrow.per_seed) > 1:
        header = ["seed", *orders, what, "in percent"]
        rows = [
            [seed, f"{one.forward:.4f}", f"{one.backward:.4f}", f"{one.nats:+.4f}", f"{one.percent:+.2f} %"]
            for seed, one in zip(comparison.compared.seeds, arrow.per_seed, strict=True)
        ]
        parts.append(table(header, rows))
    if comparison.by_length:
        header = ["tokens in a window", *orders, f"{what} in percent", "95 %"]
        rows = {
            row.length: [row.length, f"{row.forward:.4f}", f"{row.backward:.4f}", *with_interval(row)]
            for row in comparison.by_length
        }
        halves = control.by_length if control else []
        parts += ["### By context, from these models", table_with_halves(header, rows, halves)]
    if convergence and convergence.points:
        header = ["step", "loss (mean of both)", f"{what} in percent", "95 %"]
        rows = {
            point.step: [f"{point.step:,}", f"{point.loss:.4f}", *with_interval(point)] for point in convergence.points
        }
        parts += ["### By checkpoint", table_with_halves(header, rows, control.by_step if control else [])]
    if comparison.by_class:
        parts += ["### By class of token", WHAT_CLASSES_ARE, class_table(comparison.by_class, *orders)]
    for title, found in (("document", comparison.documents), ("passage", comparison.passages)):
        if found:
            parts += [f"### {title.capitalize()}s with the largest arrows", *largest_parts(title, found)]
    if changed := comparison.compared.changed_on_the_way:
        parts += [
            f"### Beside the config, in both {'directions' if comparison.is_of_directions else 'orders'} alike",
            "\n".join(f"- {in_markdown(line)}" for line in changed),
        ]
    known = {name: value for name, value in asdict(comparison.compared).items() if value is not None}
    compared = [f"- {in_markdown(name)}: {in_markdown(value)}" for name, value in flat(known)]
    parts += ["### What was compared", "\n".join(compared)]
    return "\n\n".join(parts)


def what_counts_as_one(held_out: HeldOut) -> str:
    if held_out.folds is not None:
        return f"a fold of the text for each of {held_out.folds} seeds, whose differences are those of the folds too"
    if held_out.groups is not None:
        return f"in {held_out.groups:,} groups of neighbouring documents that each count as one"
    if held_out.shared:
        return (
            f"of which {held_out.block} count as one: as many tokens as in all comparisons of this report, after the "
            "one with the longest correlation"
        )
    return f"of which {held_out.block} count as one"


def with_interval(found: LengthRow | Point) -> tuple[str, str]:
    return f"{found.percent:+.2f}", interval(found.interval, 2)


def table_with_halves(header: Sequence[str], rows: Mapping[int, Sequence], halves: Sequence[Halves]) -> str:
    """A table with rows by tokens in a window or by step, with the halves of each arrow where any are known."""
    if not halves:
        return table(header, rows.values())
    cells = {
        each.at: [text for half in (each.turns, each.stays) for text in (f"{half.value:+.2f}", interval(half.both, 2))]
        for each in halves
    }
    return table(
        [*header, "turns round with the text", "95 %", "does not", "95 %"],
        [[*row, *cells.get(at, ["not known"] * 4)] for at, row in rows.items()],
    )


def halves_table(control: Control) -> str:
    """Both halves of an arrow, with their intervals in both units."""
    halves = [("turns round with the text", control.turns, control.turns_nats)]
    if control.stays and control.stays_nats:
        halves.append(("does not turn", control.stays, control.stays_nats))
    return table(
        ["half", "percent", "95 % both", "nats per token", "95 % both"],
        [
            [name, f"{percent.value:+.2f}", interval(percent.both, 2), f"{nats.value:+.4f}", interval(nats.both, 4)]
            for name, percent, nats in halves
        ],
    )


def largest_parts(kind: str, found: Largest) -> list[str]:
    """A sentence and a table."""
    columns = [kind, "first token", "tokens", "arrow in nats per token", "percent", "first words"]
    rows = [
        [each.number, each.first_token, each.tokens, f"{each.nats:+.3f}", f"{each.percent:+.1f}", each.words]
        for each in found.stretches
    ]
    if found.stretches[0].words is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return [
        f"Of {found.count:,} {kind}s of {found.least_tokens} held-out tokens or more, whose arrows have a standard "
        f"deviation of {found.sd:.3f} nats per token. The largest of so many are large by chance too.",
        table(columns, rows),
    ]


def class_table(rows: Sequence[ClassRow], reference: str, order: str) -> str:
    """Markdown for the arrow by class."""
    return table(class_header(reference, order), map(class_cells, rows))


def table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table. What is in a cell is shown as it is."""
    lines = [[in_markdown(str(cell)) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as lines: ("config.model_params.n_layers", "2")."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += flat(value, f"{prefix}{key}.")
        else:
            lines.append((prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def interval(ends: Interval | None, digits: int) -> str:
    return "one seed" if ends is None else f"{ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"


def optional(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        # Names of files, which the command shows, may be no Unicode.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
