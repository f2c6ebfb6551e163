"""Text file to .h5: ours against `tokenizers.encode_batch`, in one run, on one core and on all.

    python benchmarks/bench_tokenize.py --mb 200
    python benchmarks/bench_tokenize.py --mb 2000 --peer_mb 200      # the peer on the first 200 MB only

The corpus is the docstrings of the installed packages, repeated to the size asked for with a share of the letters
replaced at random, afresh in each repetition: words like those of the tokenizer's training, and a steady supply of ones
never seen before (one in twelve at the default of 2 % of the letters), so that no cache of words flatters either side.
Both sides have one.

The peer is what people do: read the text, give it to `encode_batch` in batches with all its threads, write the ids as
uint16. It gets items of some 2,000 characters, at which it is fastest (--peer_characters 150 are lines, 100000 large
blocks), cut where ours would cut, so that the ids must be the same; batches of 4 MB bound its memory. Both sides are
timed from the start of a fresh process to the last byte written. Memory is the sum of the resident sets of the process
and all below it, sampled 20 times a second (pages that processes share count for each).
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from modules.corpora.docstrings import write_docstring_corpus
from modules.tok_utils import make_h5, tokenize_folder
from modules.tok_utils.cuts import BEFORE_SPACE
from modules.tokenizer import get_tokenizer

PEER_BATCH = 1 << 22
NEXT_SPACE = re.compile(r"(?<=\S)(?=\s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, help="size of the corpus in MB (default %(default)s)")
    parser.add_argument("--peer_mb", type=int, help="give the peer only the first so many MB (default: all)")
    parser.add_argument(
        "--peer_characters", type=int, default=2000, help="length of the peer's items (default %(default)s)"
    )
    parser.add_argument(
        "--noise", type=float, default=0.02, help="share of the letters replaced at random (default %(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("data/bench_tokenize"),
        help="where corpora and results go (default %(default)s)",
    )
    parser.add_argument("--tokenizer_path", type=Path, default=ROOT / "modules" / "tokenizers" / "en_tokenizer")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)  # what a child process is to do
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    text = args.folder / f"corpus_{args.mb}_{args.noise:g}" / "corpus.txt"
    if args.side == "ours":
        ours(text, args.tokenizer_path, args.cores)
    elif args.side == "peer":
        peer(
            text, args.tokenizer_path, args.folder / "peer.ids", (args.peer_mb or args.mb) * 10**6, args.peer_characters
        )
    else:
        compare(args, text)


def compare(args: argparse.Namespace, text: Path) -> None:
    """Make the corpus, run both sides in processes of their own, compare their ids, print the table."""
    if not text.exists():
        make_corpus(text, args.mb * 10**6, args.noise)
    all_cores = len(os.sched_getaffinity(0))
    peer_mb = args.peer_mb or args.mb
    print(
        f"{text.stat().st_size / 1e6:.0f} MB of text, {args.noise:.1%} of its letters random, tokenizer {args.tokenizer_path.name}, {all_cores} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        "| cores | side | MB | s | MB/s | ratio | MB/CPU s | ratio | peak memory, MB | largest process, MB | make_h5, MB/s of ids |\n"
        + "|---" * 11
        + "|"
    )
    for cores in sorted({1, all_cores}):
        rates = {}
        for side, megabytes in (("peer", peer_mb), ("ours", args.mb)):
            seconds, cpu_seconds, peak, largest, said = run(args, side, cores)
            rates[side] = megabytes / seconds, megabytes / cpu_seconds
            ratios = [
                f"{our / their:.1f}" if side == "ours" else ""
                for our, their in zip(rates[side], rates["peer"], strict=True)
            ]
            print(
                f"| {cores} | {side} | {megabytes} | {seconds:.1f} | {rates[side][0]:.2f} | {ratios[0]} | {rates[side][1]:.2f} | {ratios[1]} | "
                f"{peak / 1e6:.0f} | {largest / 1e6:.0f} | {said} |",
                flush=True,
            )
        print(f"  ids identical: {same_ids(args.folder / 'peer.ids', text.parent / 'out' / 'corpus.h5'):,}")


def run(args: argparse.Namespace, side: str, cores: int) -> tuple[float, float, int, int, str]:
    """Seconds, CPU seconds, peak memory of the process tree, peak of its largest process, and what the child
    printed."""
    command = [
        sys.executable,
        __file__,
        "--mb",
        str(args.mb),
        "--folder",
        str(args.folder),
        "--tokenizer_path",
        str(args.tokenizer_path),
        "--noise",
        str(args.noise),
        "--peer_characters",
        str(args.peer_characters),
        "--side",
        side,
        "--cores",
        str(cores),
    ] + (["--peer_mb", str(args.peer_mb)] if args.peer_mb else [])
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    began, cpu_before = time.monotonic(), cpu_of_children()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),  # noqa: PLW1509 (no threads here)
        env=os.environ | {"RAYON_NUM_THREADS": str(cores)},
    )
    peak = largest = 0
    while process.poll() is None:
        sizes = resident_sizes(process.pid)
        peak, largest = max(peak, sum(sizes)), max([largest, *sizes])
        time.sleep(0.05)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{side} on {cores} cores failed")
    return seconds, cpu_of_children() - cpu_before, peak, largest, process.stdout.read().strip()


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident_sizes(pid: int) -> list[int]:
    """Resident bytes of a process and of all below it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):  # it has ended
        return []
    return [pages * os.sysconf("SC_PAGE_SIZE")] + [size for child in children for size in resident_sizes(int(child))]


def ours(text: Path, tokenizer_path: Path, cores: int) -> None:
    for path in text.parent.glob("corpus_tokens/*"):
        path.unlink()
    chunks = tokenize_folder(text, tokenizer_path, num_workers=cores)
    began = time.monotonic()
    h5_path = make_h5(chunks, text.parent / "out", get_tokenizer(tokenizer_path))
    print(f"{h5_path.stat().st_size / 1e6 / (time.monotonic() - began):.0f}")


def peer(text: Path, tokenizer_path: Path, out: Path, size: int, characters: int) -> None:
    backend = get_tokenizer(tokenizer_path).backend
    with open(text, encoding="utf-8", newline="") as source, open(out, "wb") as ids:
        rest, left = "", size
        while left > 0 and (block := source.read(min(PEER_BATCH, left))):
            left -= len(block)
            *items, rest = items_of(rest + block, characters)
            ids.writelines(
                np.array(encoding.ids, dtype=np.uint16).data
                for encoding in backend.encode_batch(items, add_special_tokens=False)
            )
        if size >= text.stat().st_size:
            ids.write(np.array(backend.encode(rest, add_special_tokens=False).ids, dtype=np.uint16).data)


def items_of(text: str, characters: int) -> list[str]:
    """Cut a text into items of some `characters`, before white space; the rest, in which there is no such place, comes
    last."""
    items, start = [], 0
    while len(text) - start > characters:
        cut = BEFORE_SPACE.search(text, start + 1, start + characters) or NEXT_SPACE.search(text, start + characters)
        if not cut:
            break
        items.append(text[start : cut.start()])
        start = cut.start()
    return [*items, text[start:]]


def same_ids(peer_ids: Path, h5_path: Path) -> int:
    """Compare the peer's ids with the same number of ours; the number. Ends the program where they differ."""
    theirs = np.memmap(peer_ids, dtype=np.uint16, mode="r")
    with h5py.File(h5_path) as file:
        for start in range(0, len(theirs), 1 << 24):
            block = theirs[start : start + (1 << 24)]
            if not np.array_equal(block, file["tokens"][start : start + len(block)]):
                raise SystemExit("the ids differ")
    return len(theirs)


def make_corpus(text: Path, size: int, noise: float) -> None:
    """Write `size` bytes: the docstrings, over and over, each time with other letters replaced, `noise` of them."""
    text.parent.mkdir(parents=True, exist_ok=True)
    prose = text.parent.parent / "docstrings.txt"
    if not prose.exists():
        write_docstring_corpus(str(prose), 40.0, None)
    base = np.frombuffer(prose.read_bytes(), dtype=np.uint8)
    letters = np.flatnonzero((base >= ord("a")) & (base <= ord("z")))
    rng = np.random.default_rng(0)
    with open(text, "wb") as out:
        while (left := size - out.tell()) > 0:
            copy = base.copy()
            changed = rng.choice(letters, int(noise * len(letters)))
            copy[changed] = rng.integers(ord("a"), ord("z") + 1, len(changed))
            out.write(copy[:left].data)


if __name__ == "__main__":
    main()
