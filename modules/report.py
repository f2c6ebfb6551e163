"""What a measurement says, for people (report.md and pictures) and for programs (arrow.json).

A *comparison* is a plain dictionary, one for each config, so that arrow.json holds everything in report.md and
every figure can be drawn again from it:

    name       the config's name, with a number behind where another comparison has the same
    losses     {"forward" | "backward": {"nats_per_token", "bits_per_byte" (None where the bytes are not known), "perplexity"}}
    arrow      the fields of modules.arrow.Arrow, and its "verdict"
    held_out   {"windows", "context", "tokens", "block"}
    by_context the result of modules.arrow.by_context, as lists
    by_class   the result of modules.arrow.by_class, or None without a tokenizer
    curves     for each seed {"forward" | "backward": {"train" | "valid": {"step": […], "loss": […]}}}
    compared   what was compared: "text" (name of the data), "dataset", "model", "parameters", "config", "steps",
               "tokens_seen", "seeds", "runs"
"""
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules import figures
from modules.arrow import Interval
from modules.files import replacing
from modules.names import as_file_systems_see, distinct, file_name, in_markdown, link_to


def write_report(folder: str | os.PathLike, comparisons: Sequence[dict], command: str | None = None) -> dict[str, Path]:
    """Write report.md, arrow.json and the figures (PNG and SVG) into `folder`, each whole or not at all.

    Returns the path of each: "report", "json", and the PNG of each figure under its name in `draw_all`.
    """
    folder = Path(folder)
    comparisons = sorted(named_apart(comparisons),
                         key=lambda c: (figures.text_name(c), figures.parameters_without_positions(c), figures.context_length(c)))
    drawn = draw_all(comparisons)
    stems = [file_name(name, ".png").removesuffix(".png") for name in distinct(drawn, as_file_systems_see)]
    pictures = {name: figures.save(figure, folder / stem)[0] for (name, figure), stem in zip(drawn.items(), stems, strict=True)}
    write_text(folder / "arrow.json", json.dumps({"command": command, "comparisons": list(comparisons)}, indent=1, allow_nan=False) + "\n")
    write_text(folder / "report.md", markdown(comparisons, {name: path.name for name, path in pictures.items()}, command))
    return {"report": folder / "report.md", "json": folder / "arrow.json", **pictures}


def named_apart(comparisons: Sequence[dict]) -> list[dict]:
    """The comparisons, those of runs in other folders that have the same name with a number behind it."""
    names = distinct(comparison["name"] for comparison in comparisons)
    return [comparison | {"name": name} for comparison, name in zip(comparisons, names, strict=True)]


def draw_all(comparisons: Sequence[dict]) -> dict[str, figures.Figure]:
    """Each figure that these comparisons have something to show in, by its name: "small-loss", "arrow-by-step"."""
    drawn = {f"{comparison['name']}-loss": figures.loss_curves(comparison) for comparison in comparisons if comparison["curves"]}
    if any(comparison["curves"] for comparison in comparisons):
        drawn["arrow-by-step"] = figures.arrow_by_step(comparisons)
    drawn["arrow-by-tokens-seen"] = figures.arrow_by_tokens_seen(comparisons)
    for name, aspect, draw in (("arrow-by-context-length", figures.context_length, figures.arrow_by_context_length),
                               ("arrow-by-model-size", figures.size_name, figures.arrow_by_model_size),
                               ("arrow-by-text", figures.text_name, figures.arrow_by_text)):
        if len({aspect(comparison) for comparison in comparisons}) > 1:
            drawn[name] = draw(comparisons)
    return drawn


def markdown(comparisons: Sequence[dict], pictures: Mapping[str, str], command: str | None) -> str:
    """The whole report; `pictures` are the names of figures and of their files, which lie beside it."""
    own = {f"{comparison['name']}-loss" for comparison in comparisons}
    parts = ["# The arrow of time", HOW_TO_READ, summary(comparisons)]
    parts += [picture(name, file) for name, file in pictures.items() if name not in own]
    for comparison in comparisons:
        parts.append(section(comparison))
        if (name := f"{comparison['name']}-loss") in pictures:
            parts.append(picture(name, pictures[name]))
    if command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))  # longer than any in the command, which would end it
        parts.append(f"## Made by\n\n{fence}\n{command}\n{fence}")
    return "\n\n".join(parts) + "\n"


def picture(name: str, file: str) -> str:
    return f"![{in_markdown(name)}]({link_to(file)})"


HOW_TO_READ = """\
The arrow is the loss of the model that reads backward minus that of the model that reads forward, on the same tokens of
the same held-out windows: positive where backward is harder. Intervals are at 95 %. *Windows*: other held-out
text, for these trained models. *Seeds*: Student's t over initial weights and orders of the training windows, on this
held-out text. *Both*: over both; the one to quote. None of them holds the choice of the training text."""


def summary(comparisons: Sequence[dict]) -> str:
    """A row for each comparison."""
    rows = [[c["name"], c["compared"]["text"], c["held_out"]["context"],
             f"{figures.size_name(c)}: {c['compared']['parameters']:,}", len(c["compared"]["seeds"]),
             f"{c['losses']['forward']['nats_per_token']:.4f}", f"{c['losses']['backward']['nats_per_token']:.4f}",
             f"{c['arrow']['nats']['value']:+.4f}", f"{c['arrow']['percent']['value']:+.2f} %", interval(c["arrow"]["percent"]["both"], 2)]
            for c in comparisons]
    return table(["config", "text", "context", "size", "seeds", "forward (nats/token)", "backward", "arrow", "in percent", "95 % (both)"],
                 rows)


def section(comparison: dict) -> str:
    """Everything about one comparison."""
    arrow, held_out = comparison["arrow"], comparison["held_out"]
    parts = [f"## {in_markdown(comparison['name'])}", arrow["verdict"],
             table(["direction", "nats per token", "bits per byte", "perplexity"],
                   [[direction, f"{loss['nats_per_token']:.4f}", optional(loss["bits_per_byte"], ".4f"), f"{loss['perplexity']:.2f}"]
                    for direction, loss in comparison["losses"].items()]),
             table(["arrow", "value", "95 % windows", "95 % seeds", "95 % both"],
                   [[unit, f"{arrow[key]['value']:+.{digits}f}",
                     *(interval(arrow[key][kind], digits) for kind in ("windows", "seeds", "both"))]
                    for unit, key, digits in (("nats per token", "nats", 4), ("percent", "percent", 2))]),
             (f"{held_out['tokens']:,} held-out tokens in {held_out['windows']:,} windows of {held_out['context']}, "
              f"of which {held_out['block']} count as one. Paired standard error over single windows: {arrow['paired_se']:.4f} nats per token.")]
    if len(arrow["per_seed"]) > 1:
        parts.append(table(["seed", "forward", "backward", "arrow", "in percent"],
                           [[seed, f"{one['forward']:.4f}", f"{one['backward']:.4f}", f"{one['nats']:+.4f}", f"{one['percent']:+.2f} %"]
                            for seed, one in zip(comparison["compared"]["seeds"], arrow["per_seed"], strict=True)]))
    if comparison["by_class"]:
        parts += ["### By class of token", class_table(comparison["by_class"])]
    if changed := comparison["compared"]["changed_on_the_way"]:
        parts += ["### Changed while training, in both directions alike", "\n".join(f"- {in_markdown(line)}" for line in changed)]
    compared = [f"- {in_markdown(name)}: {in_markdown(value)}" for name, value in flat(comparison["compared"])]
    parts += ["### What was compared", "\n".join(compared)]
    return "\n\n".join(parts)


def class_table(rows: Sequence[dict]) -> str:
    """Markdown for the rows of modules.arrow.by_class."""
    return table(["class", "tokens", "forward", "backward", "arrow", "standard error", "share of the arrow"],
                 [[row["name"], f"{row['tokens']:,}", f"{row['forward']:.3f}", f"{row['backward']:.3f}", f"{row['arrow']:+.3f}",
                   f"{row['arrow_se']:.3f}", "unknown" if row["share"] is None else f"{100 * row['share']:.0f} %"] for row in rows])


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
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
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no Unicode, the command shows them
