"""README.md of this folder, and what stands at the end of each report."""

import json
import math
from collections.abc import Sequence
from statistics import mean, stdev

from modules.measurement.contrast import holm
from modules.measurement.noise import t_quantile
from results.measurements import (
    CIRCUIT_FLOORS,
    CIRCUIT_LINE,
    HERE,
    PAPER_CIRCUIT_LINE,
    PAPER_CIRCUITS,
    PUBLISHED,
    RESULTS,
    SAME_SIZE,
    TOGETHER,
    above_floor,
    arrow_of_time,
    comparisons_of,
    measured,
    report_of,
)


def listing() -> str:
    """README.md: what was found, a line a measurement; then the command, commit, cost and texts of each report."""
    made = [row for name, result in RESULTS.items() if result.floors for row in rows_above_floor(name)]
    orders = [
        [
            f"[{name}]({name}/report.md)",
            each["order"],
            f"{loss_of(each, each['order']):.4f}",
            *in_percent(each),
            over_the_last_third(each),
        ]
        for name, each in measured(orders=True)
    ]
    contrasts = [
        [f"[{name}]({name}/report.md)", each["what"], f"{each['value']:+.2f}", interval(each), p_value(each["p_holm"])]
        for name in RESULTS
        for each in report_of(name).get("contrasts", [])
    ]
    published = [[f"{study}, {size:g} M", f"{found:+.2f}", interval_of(both)] for study, size, found, both in PUBLISHED]
    page = [
        "# Results",
        "Written by `python -m results.make_results`. `make results` makes all of it again, from the texts on, "
        "`make result-NAME` one. Intervals are at 95 %, over seeds and held-out text; p-values are corrected for the "
        "number of rows (Holm): what is below 0.05 is a finding.",
        "![arrows](arrows.png)",
        table(ARROW_COLUMNS, arrow_rows()),
        f"The reports {', '.join(GROWN)} had {FIRST_SEEDS} seeds when they were first looked at. What the later "
        f"seeds alone say, which nobody had seen, in percent with their standard error: {later_seeds()}.",
        "## The map",
        "The half of each arrow that turns round with the text. With a tokenizer without direction that is all of it, "
        "exactly; the usual tokenizer of the names that end in `_bpe` has one, and their other half is drawn hollow "
        "above.",
        "**With size?** ![by size](by_size.png)",
        "**With training?** ![by training](by_training.png)",
        "**With context?** The same models and held-out text, in shorter windows. ![by context](by_context.png)",
        "## All texts together",
        f"The arrow of GPTs of {SAME_SIZE:,} parameters by the tokens in a window, averaged within each body of text "
        f"({', '.join(bodies_of_text())}): mean, interval (Student's t) and standard deviation over these. None that "
        "they have in common can be told from zero; that they differ, the contrasts of Bible and handbooks say.",
        table(["tokens in a window", "mean arrow, %", "95 %", "s.d. over bodies of text"], together_rows()),
        "## Orders of reading",
        "How much more than forward each loses. ![orders](orders.png)",
        table(["report", "order", "loss", "above forward, %", "95 %", "over the last third"], orders),
        "## Made texts",
        "No model passes the floor, which is exact (`modules/corpora/synthetic.py`). Nats a token; of the loss above "
        "it the mean, and the least and the greatest of the seeds.",
        "![circuits](circuits.png)",
        table(["report", "parameters", "floor", "forward above it", "backward above it", "arrow, nats", "95 %"], made),
        "The paper's circuits of 25 bits (its losses are read from a drawing, its matrices not known: others than ours "
        "change the floor by 0.0003). The floor hardly rises with the ones: what models lose more is what they have "
        "not learned. Ours differ by whole bits: one that was not learned costs ln 2 less the flips' entropy, 0.6 nats "
        "a line, and which are learned in these steps depends on the seed.",
        table(["ones beside the identity", "forward loss", "floor", "above it"], paper_circuits()),
        "## Contrasts and trends",
        "Differences between arrows in percentage points, corrected within a report (Holm).",
        table(["report", "what", "difference", "95 %", "p (Holm)"], contrasts),
        "## What others found",
        "In English; the paper's are read from a drawing (±0.05), those of arXiv 2505.08739 are our statistics on its "
        "published losses, three seeds each.",
        table(["model", "arrow, %", "95 %"], published),
        "## The reports",
        "Each names its texts, with source, licence and what was left out of them, at its end.",
        "\n".join(report_line(name) for name in RESULTS if comparisons_of(name)),
    ]
    return "\n\n".join(page) + "\n"


def rows_above_floor(name: str) -> list[list[str]]:
    def mean_and_reach(seeds: Sequence[float]) -> str:
        return f"{mean(seeds):.4f} ({min(seeds):.4f} to {max(seeds):.4f})"

    return [
        [
            f"[{each['name']}]({name}/report.md)",
            f"{each['compared']['parameters']:,}",
            f"{RESULTS[name].floors[each['name']]:.4f}",
            *(mean_and_reach(above_floor(name, each, direction)) for direction in ("forward", "backward")),
            f"{each['arrow']['nats']['value']:+.4f}",
            interval(each["arrow"]["nats"], 4),
        ]
        for each in comparisons_of(name)
    ]


def paper_circuits() -> list[list[str]]:
    floors = {ones: CIRCUIT_FLOORS[ones] * CIRCUIT_LINE / PAPER_CIRCUIT_LINE for ones in PAPER_CIRCUITS}
    return [
        [str(ones), f"{loss:.3f}", f"{floors[ones]:.4f}", f"{loss - floors[ones]:.3f}"]
        for ones, loss in PAPER_CIRCUITS.items()
    ]


def standing(about: dict) -> str:
    """What a report stands on: its command, commit, cost and texts."""
    ways = {each["how_duplicates_were_found"] for each in about["texts"].values() if "documents" in each}
    return (
        f"\n## What this stands on\n\n{made_by(about)}\n\n"
        + "\n".join(source_line(text, each) for text, each in about["texts"].items())
        + "\n"
        + "".join(f"\nHow duplicates were left out: {way}.\n" for way in sorted(ways))
    )


def made_by(about: dict) -> str:
    return (
        f"`{about['command']}` at commit `{about['commit']}`: {about['cpu_seconds'] / 3600:.1f} CPU hours in "
        f"{about['wall_seconds'] / 3600:.1f} hours ({about['processor']})."
    )


def report_line(name: str) -> str:
    about = json.loads((HERE / name / "source.json").read_text(encoding="utf-8"))
    return f"- [{RESULTS[name].title}]({name}/report.md), `make result-{name}`: {made_by(about)}"


ARROW_COLUMNS = ["report", "parameters", "seeds", "passes", "forward loss", "arrow, %", "95 %"]
ARROW_COLUMNS += ["turns round with the text, %", "p (Holm)", "does not, %", "over the last third"]


def arrow_rows() -> list[list[str]]:
    """A row for each arrow; the p-values are of the half that turns, corrected for the number of rows."""
    found = measured(orders=False)
    corrected = holm([arrow_of_time(each)["p"] for _, each in found])
    return [arrow_row(name, each, p) for (name, each), p in zip(found, corrected, strict=True)]


GROWN, FIRST_SEEDS = ("docstrings", "english", "code"), 5


def later_seeds() -> str:
    """The mean arrow of the seeds that came after a first look, which an eye on the first ones cannot have chosen."""
    found = []
    for each in (each for name in GROWN for each in comparisons_of(name)):
        later = [seed["percent"] for seed in each["arrow"]["per_seed"][FIRST_SEEDS:]]
        found.append(f"{each['name']} {mean(later):+.2f} ± {stdev(later) / math.sqrt(len(later)):.2f}")
    return ", ".join(found)


def arrow_row(name: str, comparison: dict, p: float | None) -> list[str]:
    control, convergence = comparison["control"], comparison["convergence"]
    return [
        f"[{comparison['name']}]({name}/report.md)",
        f"{comparison['compared']['parameters']:,}",
        str(len(comparison["compared"]["seeds"])),
        f"{convergence['passes']:.2f}",
        f"{comparison['arrow']['forward']:.4f}",
        *in_percent(comparison),
        half(control and control["turns"]),
        p_value(p),
        "0 (exact)" if control and control["exact"] else half(control and control["stays"]),
        over_the_last_third(comparison),
    ]


def together_rows() -> list[list[str]]:
    """A row for each length of windows: the mean over bodies of text, as if each were one draw of many."""
    of_lengths: dict[int, list[float]] = {}
    for of_body in bodies_of_text().values():
        for rows in zip(*(each["by_length"] for each in of_body), strict=True):
            of_lengths.setdefault(rows[0]["length"], []).append(mean(row["percent"] for row in rows))
    found = []
    for length, values in of_lengths.items():
        reach = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        around = (mean(values) - reach, mean(values) + reach)
        found.append([str(length), f"{mean(values):+.2f}", interval_of(around), f"{stdev(values):.2f}"])
    return found


def bodies_of_text() -> dict[str, list[dict]]:
    """The measurements of the size that most texts have, by body of text: its languages together."""
    bodies: dict[str, list[dict]] = {}
    for name, each in measured(orders=False):
        if name in TOGETHER and each["compared"]["parameters"] == SAME_SIZE:
            bodies.setdefault(each["compared"]["text"].partition("_")[0], []).append(each)
    return bodies


def over_the_last_third(comparison: dict) -> str:
    """How far an arrow moved over the last third of the training."""
    convergence = comparison["convergence"]
    if convergence["change"] is None:
        return "not known"
    return f"{convergence['change']:+.2f} points, {'still moving' if convergence['moving'] else 'at rest'}"


def in_percent(comparison: dict) -> list[str]:
    percent = comparison["arrow"]["percent"]
    return [f"{percent['value']:+.2f}", interval(percent)]


def p_value(p: float | None) -> str:
    return "not known" if p is None else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def loss_of(comparison: dict, order: str) -> float:
    return comparison["losses"][order]["nats_per_token"]


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def half(estimate: dict | None) -> str:
    return f"{estimate['value']:+.2f} ({interval(estimate)})" if estimate else "not known"


def interval(estimate: dict, digits: int = 2) -> str:
    return interval_of(estimate["both"], digits)


def interval_of(both: Sequence[float] | None, digits: int = 2) -> str:
    return f"{both[0]:+.{digits}f} to {both[1]:+.{digits}f}" if both else "not known"


def source_line(text: str, about: dict) -> str:
    """What a text is, in a line."""
    sources = "; ".join(
        " ".join(filter(None, [source.get("package"), source.get("version"), in_code(source.get("files"))]))
        + f" ({first_of(source.get('licence', 'not said'))})"
        for source in about["sources"]
    )
    size = f"{about['size'] / 1e6:.1f} MB in {about['documents']:,} documents: " if "documents" in about else ""
    removed = (
        f". Left out: {about['repeated_paragraphs']:,} repeated paragraphs and {about['near_duplicates']:,} "
        "near-duplicate documents"
        if "documents" in about
        else ""
    )
    return f"- **{text}**: {size}{sources}{removed}."


def in_code(text: str | None) -> str | None:
    return text and f"`{text}`"


def first_of(licences: str) -> str:
    """The first three; source.json has all, of every file in the package."""
    names = licences.split(", ")
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
