"""Orders of reading on small texts: which are harder, and what two questions about them give.

    python -m benchmarks.orders --folder runs/orders

1. How hard is each order? On docstrings, three seeds: forward, backward, even_odd, middle_out, chunks:8, mallows at
   three thetas, one random order, another in each window, and forward and backward in one model (`both`).
2. Has the arrow inside one model that reads in both directions less noise over seeds than that between two models, and
   do the two agree? Six seeds, on docstrings and on products of primes, whose arrow is large.
3. Does the arrow belong to the text, or to how positions are encoded? Learned positions, rotary ones, and none, three
   seeds, on both texts.

Everything is trained and compared by the commands that a user would give, with models of two layers of width 64. What
is finished stays in the folder: interrupted, the same command goes on, and three of the six seeds of 2 and the learned
positions of 3 are those of 1. On two cores it takes about an hour of CPU time.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import recording
from modules.measurement import arrow, contrast
from modules.measurement.loss_files import read_losses
from modules.measurement.report import interval, optional, table
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing

ROOT = Path(__file__).resolve().parents[1]
ORDERS = [
    "forward",
    "backward",
    "even_odd",
    "middle_out",
    "chunks:8",
    "mallows:2,1",
    "mallows:0.5,1",
    "mallows:0.1,1",
    "random:1",
    "fresh_random",
    "both",
]
SEEDS, SEEDS_OF_NOISE = 3, 6
F_5_5 = 7.146  # the 97.5 % quantile of F with 5 and 5 degrees of freedom: two variances of six seeds each
POSITIONS = ["learned", "rope", "none"]


# Texts and configs
# --------------------------------------------------------------------------------------------------------------------


def run(script: str, *arguments: object) -> None:
    """A script of the project, as a user starts it. UserError where it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    if status := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{script} ended with {status}; the same command goes on from there")


def dataset(folder: Path, name: str, megabytes: float) -> Path:
    """The .h5 of a text, made where it is not there."""
    data = folder / "data" / name
    text, made = data / f"{name}.txt", data / f"{name}.h5"
    if made.exists():
        return made
    data.mkdir(parents=True, exist_ok=True)
    if name == "primes":
        run("generate_text.py", "primes", text, "--lines", int(megabytes * 1e6) // 15, "--digits", 3)
    else:
        run("collect_docstrings.py", text, "--max_mb", megabytes)
    names = {"txt_path": text, "out_h5_folder": data, "tokenizer_folder": data, "tokenizer_name": f"{name}_tokenizer"}
    vocab_size = 257 if name == "primes" else 1024  # primes: a character a token
    run("tokenize_to_h5.py", *(f"--{key}={value}" for key, value in names.items()), f"--vocab_size={vocab_size}")
    return made


def write_config(folder: Path, text: str, position: str, args: argparse.Namespace) -> Path:
    """The config of a text and an encoding of positions. Primes have a line in each window, and twice as many steps."""
    context, steps = (15, 2 * args.steps) if text == "primes" else (32, args.steps)
    config = {
        "model": "gpt",
        "model_params": {
            "vocab_size": 257 if text == "primes" else 1024,
            "n_layers": 2,
            "n_heads": 2,
            "embed_dim": 64,
            "attn_length": context,
            "dropout": 0.0,
            "position": position,
        },
        "training_params": {
            "dataset_folder": str(dataset(folder, text, args.megabytes)),
            "batch_size": 32,
            "steps_to_train": steps,
            "held_out_tokens": args.held_out * context,
            "save_every": max(1, steps // 4),
            "backup_every": 10 * steps,
            "step_log": max(1, steps // 40),
            "stride": context if text == "primes" else None,
            "state_save_loc": str(folder),
        },
        "optim_params": {
            "lr": 3e-3,
            "warmup_steps": steps // 10,
            "oscil_steps": steps - steps // 10,
            "lr_init": 3e-5,
            "lr_min": 3e-4,
        },
    }
    path = folder / "configs" / (f"{text}.json" if position == "learned" else f"{text}_{position}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def measured(
    args: argparse.Namespace, report: str, text: str, positions: Sequence[str], orders: Sequence[str], seeds: int
) -> Path:
    """The folder of a report, trained as far as it was not yet."""
    out = args.folder / "reports" / report
    configs = [write_config(args.folder, text, position, args) for position in positions]
    if not (out / "losses.npz").exists():
        options = ["--orders", *orders, "--seeds", seeds, "--jobs", args.jobs, "-p", text, "-o", out]
        run("measure_arrow.py", *configs, *options, "--no_control", "--save_losses", "-d", "cpu")
    return out


def found(out: Path) -> dict:
    return json.loads((out / "arrow.json").read_text(encoding="utf-8"))


# What they say
# --------------------------------------------------------------------------------------------------------------------


def table_of_orders(out: Path) -> str:
    """Each order with its loss, and its difference from forward."""
    report = found(out)
    p_values = {each["what"]: each["p_holm"] for each in report["contrasts"]}
    rows = [["forward", f"{report['comparisons'][0]['arrow']['forward']:.4f}", "", "", "", ""]]
    for each in report["comparisons"]:
        order, percent, model = each["order"], each["arrow"]["percent"], each["in_one_model"]
        name = f"{order} in one model of {model}" if model else order
        what = f"{each['config']}: {order} - forward" + (f" in one model of {model}" if model else "")
        rows.append(
            [
                name,
                f"{each['arrow']['backward']:.4f}",
                f"{each['arrow']['nats']['value']:+.4f}",
                f"{percent['value']:+.2f}",
                interval(percent["both"], 2),
                optional(p_values[what], ".4f"),
            ]
        )
    return table(["order", "loss (nats/token)", "difference", "in percent", "95 %", "p (Holm)"], rows)


def rows_of_noise(text: str, out: Path) -> list[list[str]]:
    """Both ways to measure the arrow of a text, and how they compare."""
    report = found(out)
    by_model = {each["in_one_model"] is not None: each for each in report["comparisons"]}
    rows = []
    for in_one in (False, True):
        each = by_model[in_one]
        rows.append(
            [
                text,
                "one model" if in_one else "two models",
                f"{each['arrow']['forward']:.4f}",
                f"{each['arrow']['percent']['value']:+.2f}",
                interval(each["arrow"]["percent"]["both"], 2),
                ", ".join(f"{seed['percent']:+.2f}" for seed in each["arrow"]["per_seed"]),
                f"{each['arrow']['seeds_sd']:.3f}",
            ]
        )
    return rows


def noise_in_words(text: str, out: Path) -> str:
    """The ratio of the two spreads over seeds, and the difference of the two arrows."""
    report = found(out)
    sds = {each["in_one_model"] is not None: each["arrow"]["seeds_sd"] for each in report["comparisons"]}
    ratio, factor = sds[True] / sds[False], math.sqrt(F_5_5)
    difference = next(each for each in report["contrasts"] if each["what"].endswith("- in two"))
    return (
        f"{text}: the standard deviation over seeds in one model is {ratio:.2f} times that of two models (95 %: "
        f"{ratio / factor:.2f} to {ratio * factor:.2f}); the arrow in one model less that of two is "
        f"{difference['value']:+.2f} points ({interval(difference['both'], 2)}, p {optional(difference['p'], '.3f')})."
    )


def rows_of_positions(text: str, out: Path) -> list[list[str]]:
    """The arrow with each encoding of positions, and its difference from that with learned ones."""
    arrows = {each["config"]: each["arrow"] for each in found(out)["comparisons"]}
    losses = read_losses(out / "losses.npz")
    rows = []
    for position in POSITIONS:
        name = text if position == "learned" else f"{text}_{position}"
        sample, learned = (
            arrow.sample(of["forward"], of["backward"]) for of in (losses[name].by_order, losses[text].by_order)
        )
        difference = contrast.contrast(sample, learned, same_seeds=True, same_text=True)
        percent = arrows[name]["percent"]
        rows.append(
            [
                text,
                position,
                f"{arrows[name]['forward']:.4f}",
                f"{arrows[name]['backward']:.4f}",
                f"{percent['value']:+.2f}",
                interval(percent["both"], 2),
                *(["", ""] if position == "learned" else [f"{difference.value:+.2f}", interval(difference.both, 2)]),
            ]
        )
    return rows


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/orders"), help="of everything (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of docstrings; primes: twice as many (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=4.0, help="of each text (default %(default)s)")
    parser.add_argument("--held_out", type=int, default=2048, help="windows (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default %(default)s)")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    of_orders = measured(args, "orders", "docstrings", ["learned"], ORDERS, SEEDS)
    pair = ["forward", "backward"]
    texts = ["docstrings", "primes"]
    of_noise = {
        text: measured(args, f"noise-{text}", text, ["learned"], [*pair, "both"], SEEDS_OF_NOISE) for text in texts
    }
    of_positions = {text: measured(args, f"positions-{text}", text, POSITIONS, pair, SEEDS) for text in texts}
    with recording("orders"):
        print(f"Docstrings, {args.megabytes:g} MB, {SEEDS} seeds:\n\n{table_of_orders(of_orders)}\n")
        header = ["text", "arrow in", "forward loss", "arrow, %", "95 %", "of each seed", "s.d. over seeds"]
        print(table(header, sum((rows_of_noise(*each) for each in of_noise.items()), [])) + "\n")
        print("\n".join(noise_in_words(*each) for each in of_noise.items()) + "\n")
        header = ["text", "positions", "forward", "backward", "arrow, %", "95 %", "less learned, points", "95 %"]
        print(table(header, sum((rows_of_positions(*each) for each in of_positions.items()), [])))


if __name__ == "__main__":
    main()
