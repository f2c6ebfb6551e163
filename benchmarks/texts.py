"""What `measure_arrow.py TEXT` promises, and what it keeps: time and width of the interval, by the length of the text.

    python -m benchmarks.texts demo/docstrings/docstrings.txt --mb 1.5 4 12 --minutes 8

Measures the first megabytes of the text, so many at a time, each as a user would and within so many minutes, and prints
what was announced beside what came. Interrupted, it goes on, but the times of what was finished before are then short.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.records import recording
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing

ROOT = Path(__file__).resolve().parents[1]
PROMISED = re.compile(r"about (?P<time>[\d:]+) of .*reach ±(?P<width>[\d.]+) %")
HEADER = [
    "MB",
    "tokens",
    "parameters",
    "seeds",
    "training, promised",
    "all of it, found",
    "half-width, promised, %",
    "found, %",
    "forward loss",
    "arrow, %",
    "converged",
]


def measured(text: Path, megabytes: float, minutes: float, folder: Path) -> list[str]:
    """The row of the first megabytes of a text."""
    name = f"{text.stem}-{megabytes:g}MB"
    cut = folder / f"{name}.txt"
    if not cut.exists():
        with open(text, "rb") as file, replacing(cut) as temporary:
            temporary.write_bytes(file.read(round(megabytes * 1e6)).decode("utf-8", "ignore").encode())
    command = [sys.executable, str(ROOT / "measure_arrow.py"), str(cut), "--minutes", f"{minutes:g}"]
    start = time.monotonic()
    ended = subprocess.run([*command, "--state_save_loc", str(folder)], capture_output=True, text=True)
    took = time.monotonic() - start
    promised, tokens = PROMISED.search(ended.stderr), re.search(r"^\S+: ([\d,]+) tokens", ended.stderr, re.M)
    if ended.returncode or promised is None or tokens is None:
        raise UserError(f"{cut}: measure_arrow.py ended with {ended.returncode}, and said: {ended.stderr[-300:]}")
    found = json.loads((folder / name / "report" / "arrow.json").read_text(encoding="utf-8"))["comparisons"][0]
    percent, convergence = found["arrow"]["percent"], found["convergence"]
    low, high = percent["both"]
    return [
        f"{megabytes:g}",
        tokens[1],
        f"{found['compared']['parameters']:,}",
        str(len(found["compared"]["seeds"])),
        promised["time"],
        f"{took / 60:.1f} of {minutes:g} minutes",
        promised["width"],
        f"{(high - low) / 2:.2f}",
        f"{found['losses']['forward']['nats_per_token']:.4f}",
        f"{percent['value']:+.2f} ({low:+.2f} to {high:+.2f})",
        "" if convergence is None else "still moving" if convergence["moving"] else "yes",
    ]


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a plain text")
    parser.add_argument("--mb", type=float, nargs="+", default=[1.5, 4, 12], help="default: 1.5 4 12")
    parser.add_argument("--minutes", type=float, default=8, help="for each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/texts"), help="default: %(default)s")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with recording("texts"):
        print("| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER), sep="\n")
        for megabytes in args.mb:
            print("| " + " | ".join(measured(args.text, megabytes, args.minutes, args.folder)) + " |", flush=True)


if __name__ == "__main__":
    main()
