"""Make the reports of this folder: measure, copy each report, write what it stands on beside it, and list all.

    python -m results.make_results             all, trained as far as they are not yet: hours to days
    python -m results.make_results help code   some
    python -m results.make_results --list      only README.md, from the reports that are here

The texts are made by `make results` (results.mk), which calls this. A measurement that was interrupted goes on; its
time is the sum of all tries, in `runs/<name>/cost.json`.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from benchmarks.records import commit, processor
from modules.plots import label, new_axes, save
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "results"
SHOWN = (".md", ".json", ".png")  # of a report; SVGs, coloured pages and losses stay with the runs


class Result(NamedTuple):
    title: str
    configs: list[str]  # of configs/results, without _forward
    tokenizer: str | None  # of data/tokenizers, where all configs have the same
    texts: list[str]  # of data/


RESULTS = {
    "docstrings": Result(
        "English docstrings, by size", ["docstrings_width32", "docstrings_width64"], "docstrings", ["docstrings"]
    ),
    "help": Result(
        "The same manuals in five languages",
        [f"help_{language}" for language in ("en", "fr", "de", "es", "it")],
        None,
        [f"help_{language}" for language in ("en", "fr", "de", "es", "it")],
    ),
    "english": Result("Long English prose, by size", ["english_width64"], "english", ["english"]),
    "code": Result("Source code", ["code"], "code", ["code"]),
    "umaydis": Result("A genome", ["umaydis"], "umaydis", ["umaydis"]),
    "noisy_circuit": Result("The paper's circuit of 20 bits", ["noisy_circuit"], "noisy_circuit", ["noisy_circuit"]),
}
# What stands in no .source.json, as these texts are not collected from packages with a licence each.
SOURCES = {
    "docstrings": {
        "package": "the installed packages of requirements-dev.txt and the standard library, 12.3 MB on this machine",
        "licence": "the packages' own: BSD, MIT, Apache-2.0, PSF-2.0 mostly",
    },
    "noisy_circuit": {"package": "generate_text.py", "licence": "none: it is made"},
    "umaydis": {
        "package": "the genome of Ustilago maydis, 20 million bases without runs of N, of Debian's maffilter-examples",
        "licence": "CeCILL",
    },
}


# What others found, in percent of the forward loss, with its interval where one is known: "Arrows of Time" (read from a
# drawing, ±0.05), and our statistics (measure_arrow.py --losses) on the losses that arXiv 2505.08739 gives.
PUBLISHED = {
    "Papadopoulos et al. 2024, CC100, 4.9 M": (-0.35, None),
    "Papadopoulos et al. 2024, CC100, 55.6 M": (0.2, None),
    "Papadopoulos et al. 2024, CC100, 405 M": (0.76, None),
    "arXiv 2505.08739, neuroscience, 124 M": (0.29, (-0.21, 0.80)),
    "arXiv 2505.08739, neuroscience, 355 M": (0.75, (0.61, 0.89)),
    "arXiv 2505.08739, neuroscience, 774 M": (1.24, (1.13, 1.35)),
}


# Circuits of 25 bits, the identity and so many ones more, 1 % flips: the paper's forward loss (from a drawing) and the
# floor, nats a token of its lines of 57: 52 * noisy_circuit_entropy(25, ones) / 57. Other matrices give 0.0003 less or
# more; the paper's own are not known.
CIRCUITS = {0: (0.347, 0.3467), 10: (0.366, 0.3484), 20: (0.403, 0.3492), 30: (0.442, 0.3510), 50: (0.532, 0.3520)}


def command_of(name: str) -> list[str]:
    result = RESULTS[name]
    configs = [f"configs/results/{config}_forward.json" for config in result.configs]
    tokenizer = ["-t", f"data/tokenizers/{result.tokenizer}"] if result.tokenizer else []
    return ["measure_arrow.py", *configs, "--seeds", "5", *tokenizer, "-p", name, "--jobs", "2"]


def make(name: str) -> None:
    """Measure, and copy what is small of the report here."""
    runs = ROOT / "runs" / name
    cost_file = runs / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {"cpu_seconds": 0.0, "wall_seconds": 0.0}
    began, before = time.time(), cpu_seconds()
    status = subprocess.run([sys.executable, *command_of(name)], cwd=ROOT, env=os.environ | {"WANDB_MODE": "disabled"})
    cost = {
        "command": " ".join(["python", *command_of(name)]),
        "commit": commit(),
        "processor": processor(),
        "cpu_seconds": round(cost["cpu_seconds"] + cpu_seconds() - before),
        "wall_seconds": round(cost["wall_seconds"] + time.time() - began),
    }
    runs.mkdir(parents=True, exist_ok=True)
    write(cost_file, json.dumps(cost, indent=1) + "\n")
    if status.returncode:
        raise UserError(f"{name}: measure_arrow.py ended with {status.returncode}; the same command goes on from there")
    copy_report(name, runs / "report", cost)


def copy_report(name: str, report: Path, cost: dict) -> None:
    """Put a finished report here, with what it cost and what its texts are."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in report.iterdir():
        if file.suffix in SHOWN:
            shutil.copy(file, folder)
    write(folder / "source.json", json.dumps({**cost, "texts": texts_of(name)}, indent=1, ensure_ascii=False) + "\n")


def texts_of(name: str) -> dict[str, dict]:
    found = {}
    for text in RESULTS[name].texts:
        path = ROOT / "data" / text / f"{text}.source.json"
        found[text] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sources": [SOURCES.get(text, {})]}
        )
    return found


def comparisons_of(name: str) -> list[dict]:
    """What the report here found, as its arrow.json has it; nothing where there is none."""
    path = HERE / name / "arrow.json"
    return json.loads(path.read_text(encoding="utf-8"))["comparisons"] if path.exists() else []


def listing() -> str:
    """README.md: a line a measurement, then the command, commit, cost and texts of each report."""
    rows = [row(name, comparison) for name in RESULTS for comparison in comparisons_of(name)]
    header = ["report", "parameters", "seeds", "passes", "forward loss", "arrow, %", "95 %"]
    header += ["turns round with the text, %", "does not, %", "over the last third"]
    published = [in_row([name, f"{value:+.2f}", interval_of(both)]) for name, (value, both) in PUBLISHED.items()]
    circuits = [
        in_row([str(ones), f"{loss:.3f}", f"{floor:.4f}", f"{loss - floor:.3f}"])
        for ones, (loss, floor) in CIRCUITS.items()
    ]
    page = [
        "# Results",
        "Written by `python -m results.make_results`. `make results` makes all of it again, from the texts on, "
        "`make result-NAME` one. Intervals are at 95 %, over seeds and held-out text.",
        "![arrows](arrows.png)",
        "\n".join([in_row(header), in_row(["---"] * len(header)), *rows]),
        "## What others found",
        "In English; the paper's are read from a drawing (±0.05), those of arXiv 2505.08739 are our statistics on its "
        "published losses, three seeds each.",
        "\n".join([in_row(["model", "arrow, %", "95 %"]), in_row(["---"] * 3), *published]),
        "The paper's circuits of 25 bits, nats a token. The floor is exact (`noisy_circuit_entropy`) for matrices of "
        "ours, as the paper's are not known. It hardly rises with the ones: what the paper's models lose more is what "
        "they have not learned.",
        "\n".join(
            [in_row(["ones beside the identity", "forward loss", "floor", "excess"]), in_row(["---"] * 4), *circuits]
        ),
        "## What each stands on",
        *(standing(name) for name in RESULTS if comparisons_of(name)),
    ]
    return "\n\n".join(page) + "\n"


def standing(name: str) -> str:
    """Command, commit, cost and texts of a report."""
    about = json.loads((HERE / name / "source.json").read_text(encoding="utf-8"))
    return (
        f"### [{RESULTS[name].title}]({name}/report.md)\n\n"
        f"`{about['command']}` at commit `{about['commit']}`: {about['cpu_seconds'] / 3600:.1f} CPU hours in "
        f"{about['wall_seconds'] / 3600:.1f} hours ({about['processor']}).\n\n"
        + "\n".join(source_line(text, each) for text, each in about["texts"].items())
    )


def arrows() -> Figure:
    """Each arrow with its interval, ours above, what others found below."""
    ours = {
        f"{label(each['name'])}, {each['compared']['parameters'] / 1e6:.1f} M": each["arrow"]["percent"]
        for name in RESULTS
        for each in comparisons_of(name)
    }
    found = {name: (each["value"], each["both"]) for name, each in ours.items()} | PUBLISHED
    figure, axes = new_axes("The arrow of time, with 95 % intervals", "backward - forward (% of the forward loss)", "")
    figure.set_figheight(1.4 + 0.28 * len(found))
    for place, (name, (value, both)) in enumerate(found.items()):
        reach = [[value - both[0]], [both[1] - value]] if both else None
        colour = "#000000" if name in ours else "#999999"
        axes.errorbar([value], [place], xerr=reach, fmt="o", color=colour, markersize=4, capsize=3, linewidth=1.4)
    axes.axvline(0, color="#000000", linewidth=1)
    axes.set_yticks(range(len(found)), list(found))
    axes.tick_params(axis="y", labelsize=8.5)
    axes.invert_yaxis()
    return figure


def write_listing() -> None:
    write(HERE / "README.md", listing())
    save(arrows(), HERE / "arrows")


def row(name: str, comparison: dict) -> str:
    arrow, control, convergence = comparison["arrow"], comparison["control"], comparison["convergence"]
    moved = f"{convergence['change']:+.2f} points, {'still moving' if convergence['moving'] else 'at rest'}"
    cells = [
        f"[{comparison['name']}]({name}/report.md)",
        f"{comparison['compared']['parameters']:,}",
        str(len(comparison["compared"]["seeds"])),
        f"{convergence['passes']:.2f}",
        f"{arrow['forward']:.4f}",
        f"{arrow['percent']['value']:+.2f}",
        interval(arrow["percent"]),
        half(control and control["turns"]),
        "0 (exact)" if control and control["exact"] else half(control and control["stays"]),
        moved if convergence["change"] is not None else "not known",
    ]
    return in_row(cells)


def in_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def half(estimate: dict | None) -> str:
    return f"{estimate['value']:+.2f} ({interval(estimate)})" if estimate else "not known"


def interval(estimate: dict) -> str:
    return interval_of(estimate["both"])


def interval_of(both: Sequence[float] | None) -> str:
    return f"{both[0]:+.2f} to {both[1]:+.2f}" if both else "not known"


def source_line(text: str, about: dict) -> str:
    """What a text is, in a line."""
    sources = "; ".join(
        f"{source.get('package', source.get('folder', ''))} {source.get('version', '')}".strip()
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


def first_of(licences: str) -> str:
    """The first three; source.json has all, of every file in the package."""
    names = licences.split(", ")
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cpu_seconds() -> float:
    """CPU time of all ended child processes of this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*RESULTS, []], metavar="NAME", help=", ".join(RESULTS))
    parser.add_argument("--list", action="store_true", help="measure nothing, write README.md")
    args = parser.parse_args()
    for name in [] if args.list else args.names or RESULTS:
        make(name)
        write_listing()
    write_listing()


if __name__ == "__main__":
    main()
