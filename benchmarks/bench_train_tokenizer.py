"""Training a tokenizer: `create_tokenizer` against `tokenizers` alone, in one run, with the same tokenizer in the end.

    python -m benchmarks.bench_train_tokenizer --mb 200

The corpus is that of bench_tokenize.py: docstrings with a share of the letters replaced at random, so that distinct
words never cease. The peer is what people do: the file's lines, in lists of a megabyte, go to `train_from_iterator`, on
all cores. Both sides are timed from the start of a fresh process to the tokenizer on the disk; memory is the peak of
the process's resident set.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.records import recording

LINE = re.compile(r"(?<=\S)(?=\n)")  # lines that train the tokenizer of the whole text: GPT-2's pattern sees no further
BATCH = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, help="size of the corpus in MB (default %(default)s)")
    parser.add_argument("--vocab_size", type=int, default=50257, help="ids to reach (default %(default)s)")
    parser.add_argument("--noise", type=float, default=0.02, help="share of letters replaced (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("data/bench_train_tokenizer"), help="where all is written")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)  # what a child process is to do
    args = parser.parse_args()
    text = args.folder / f"corpus_{args.mb}_{args.noise:g}" / "corpus.txt"
    if args.side:
        {"ours": ours, "peer": peer}[args.side](text, args.folder, args.vocab_size)
        return
    from benchmarks.bench_tokenize import make_corpus

    if not text.exists():
        make_corpus(text, args.mb * 10**6, args.noise)
    with recording("train_tokenizer"):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Both sides on the corpus: a row each, and whether they made the same tokenizer."""
    print(f"{args.mb} MB, {args.vocab_size:,} ids, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print("| side | s | CPU s | times the peer | times the peer's CPU | peak memory, MB |\n|---|---|---|---|---|---|")
    peers = None
    for side in ("peer", "ours"):
        seconds, cpu_seconds, peak = run(side, args)
        peers = peers or (seconds, cpu_seconds)
        print(
            f"| {side} | {seconds:.1f} | {cpu_seconds:.1f} | {peers[0] / seconds:.1f} | {peers[1] / cpu_seconds:.1f} | "
            f"{peak / 1e6:.0f} |",
            flush=True,
        )
    made = [json.loads((args.folder / side / "tokenizer.json").read_text())["model"] for side in ("peer", "ours")]
    alike = sum(one == other for one, other in zip(*(model["merges"] for model in made), strict=True))
    print(f"  {alike:,} of {len(made[0]['merges']):,} merges alike, vocabularies alike: {made[0] == made[1]}")


def run(side: str, args: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak resident bytes of one side in a process of its own."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (args.folder / side / name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.bench_train_tokenizer", "--side", side]
    for name in ("mb", "vocab_size", "noise", "folder"):
        command += [f"--{name}", str(getattr(args, name))]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{side} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def ours(text: Path, folder: Path, vocab_size: int) -> None:
    from modules.tok_utils.create_custom_tokenizer import create_tokenizer

    create_tokenizer(text, folder, "ours", vocab_size)


def peer(text: Path, folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def lines():
        with open(text, encoding="utf-8", newline="") as file:
            rest = ""
            while block := file.read(BATCH):
                *whole, rest = LINE.split(rest + block)
                yield whole
            yield [rest]

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(lines(), trainer)
    (folder / "peer").mkdir(exist_ok=True)
    backend.save(str(folder / "peer" / "tokenizer.json"))


if __name__ == "__main__":
    main()
