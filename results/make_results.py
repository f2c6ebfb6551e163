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
from pathlib import Path

from benchmarks.records import commit, processor
from modules.plots import save
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing
from results import figures
from results.listing import listing, standing
from results.measurements import HERE, RESULTS, ROOT, SOURCES

FIGURES = (figures.arrows, figures.by_size, figures.by_training, figures.by_context, figures.orders, figures.circuits)
SHOWN = (".md", ".json", ".png")  # of a report; SVGs, coloured pages and losses stay with the runs


def command_of(name: str) -> list[str]:
    result = RESULTS[name]
    configs = [f"configs/results/{config}_forward.json" for config in result.configs]
    tokenizer = ["-t", f"data/tokenizers/{result.tokenizer}"] if result.tokenizer else []
    seeds = ["--seeds", str(result.seeds)]
    return ["measure_arrow.py", *configs, *seeds, *tokenizer, *result.options, "-p", name, "--jobs", "2"]


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
    about = {**cost, "texts": texts_of(name)}
    write(folder / "source.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    with open(folder / "report.md", "a", encoding="utf-8") as file:
        file.write(standing(about))


def texts_of(name: str) -> dict[str, dict]:
    found = {}
    for text in RESULTS[name].texts:
        path = ROOT / "data" / text / f"{text}.source.json"
        found[text] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"sources": [SOURCES.get(text, {})]}
        )
    return found


def write_listing() -> None:
    write(HERE / "README.md", listing())
    for draw in FIGURES:
        save(draw(), HERE / draw.__name__)


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
