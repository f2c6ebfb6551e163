"""How a given number of tokens is best spent: what batch size and learning rate do to the arrow and to its noise.

    python -m benchmarks.recipes --data demo/runs/demo/data/docstrings.h5 --folder runs/recipes

Trains the demo's model on the same tokens by each recipe, in both directions and for the same seeds, by the commands
that a user would give, and prints for each the loss, the arrow, its spread over seeds, and what that spread costs: the
CPU time of one seed times its variance, which is what an interval of a given width costs in the end. Interrupted, it
goes on.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.records import recording
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "demo" / "demo_forward.json"


class Recipe(NamedTuple):
    windows: int  # a step
    steps: int
    lr: float


RECIPES = [
    Recipe(64, 1000, 3e-3),
    Recipe(64, 1000, 6e-3),
    Recipe(32, 2000, 3e-3),
    Recipe(32, 2000, 1.5e-3),
    Recipe(16, 4000, 3e-3),
    Recipe(16, 4000, 1.5e-3),
    Recipe(8, 8000, 1.5e-3),
]
WITH_CONTROL = [RECIPES[0], RECIPES[2]]  # the first was the demo's, the other is


def write_config(recipe: Recipe, data: Path, folder: Path) -> Path:
    """The demo's config with the recipe and the data. Returns its path."""
    config = json.loads(DEMO.read_text(encoding="utf-8"))
    config["training_params"] |= {
        "dataset_folder": str(data),
        "batch_size": recipe.windows,
        "steps_to_train": recipe.steps,
        "save_every": recipe.steps // 4,
        "backup_every": recipe.steps * 10,
        "step_log": recipe.steps // 50,
        "state_save_loc": str(folder),
    }
    config["optim_params"] |= {
        "lr": recipe.lr,
        "warmup_steps": recipe.steps // 10,
        "oscil_steps": recipe.steps - recipe.steps // 10,
        "lr_init": recipe.lr / 100,
        "lr_min": recipe.lr / 10,
    }
    path = folder / f"{name_of(recipe)}_forward.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def name_of(recipe: Recipe) -> str:
    return f"recipe_{recipe.windows}x{recipe.steps}_{recipe.lr:g}"


def measured(recipe: Recipe, args: argparse.Namespace) -> tuple[dict, float]:
    """The recipe's comparison (of arrow.json), trained as far as it was not yet, and the CPU seconds of a seed in both
    directions."""
    config, project = write_config(recipe, args.data, args.folder), name_of(recipe)
    cost = args.folder / project / "cpu_seconds"
    report = args.folder / project / "report" / "arrow.json"
    if not report.exists():
        command = [sys.executable, str(ROOT / "measure_arrow.py"), str(config), "-p", project]
        command += ["--seeds", str(args.seeds), "--jobs", str(args.jobs)]
        command += ["--control" if recipe in WITH_CONTROL else "--no_control"]
        before, earlier = cpu_seconds(), float(cost.read_text()) if cost.exists() else 0.0
        status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        cost.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cost) as temporary:
            temporary.write_text(str(earlier + cpu_seconds() - before))
        if status:
            raise UserError(f"{config}: measure_arrow.py ended with {status}; the same command goes on from there")
    found = json.loads(report.read_text(encoding="utf-8"))["comparisons"]
    texts = 2 if recipe in WITH_CONTROL else 1
    return found[0], float(cost.read_text()) / args.seeds / texts


def cpu_seconds() -> float:
    """CPU time of all ended child processes of this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(recipe: Recipe, comparison: dict, seconds: float) -> str:
    """A line of the table."""
    percent = np.array([each["percent"] for each in comparison["arrow"]["per_seed"]])
    control = comparison["control"]
    halves = (
        ""
        if control is None
        else " / ".join(
            f"{half['value']:+.2f} ({half['both'][0]:+.2f} to {half['both'][1]:+.2f})"
            for half in (control["turns"], control["stays"])
        )
    )
    sd = percent.std(ddof=1)
    cells = [
        f"{recipe.steps:,} steps of {recipe.windows}, lr {recipe.lr:g}",
        f"{comparison['losses']['forward']['nats_per_token']:.4f}",
        ", ".join(f"{value:+.2f}" for value in percent),
        f"{percent.mean():+.2f}",
        f"{sd:.2f}",
        f"{seconds:.0f}",
        f"{sd**2 * seconds / 3600:.5f}",
        halves,
    ]
    return "| " + " | ".join(cells) + " |"


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the .h5 to train on")
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"), help="of the runs (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default %(default)s)")
    args = parser.parse_args()
    found = [(recipe, *measured(recipe, args)) for recipe in RECIPES]
    with recording("recipes"):
        print(
            "| recipe | forward loss | arrow of each seed, % | mean | s.d. | CPU s a seed | s.d.² x CPU hours | "
            "turns round with the text / does not, % |\n" + "|---" * 8 + "|"
        )
        for each in found:
            print(row(*each))


if __name__ == "__main__":
    main()
