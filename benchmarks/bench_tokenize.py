"""Text file to .h5: ours against `tokenizers.encode_batch`, in one run, on all cores.

    python -m benchmarks.bench_tokenize                                # 6 MB and 200 MB, the peer on all of it
    python -m benchmarks.bench_tokenize --mb 2000 4000 --peer_mb 200   # the peer on the first 200 MB only

The corpus is the docstrings of the installed packages, repeated to the size asked for with a share of the letters
replaced at random, afresh in each repetition: words like those of the tokenizer's training, and a steady supply of ones
never seen before (one in twelve at the default of 2 % of the letters), so that no cache of words flatters either side.
Both sides have one.

The peer is what people do: read the text, give it to `encode_batch` in batches with all its threads, write the ids as
uint16. It gets items of some 2,000 characters, at which it is fastest (--peer_characters 150 are lines, 100000 large
blocks), cut where ours would cut, so that the ids must be the same; batches of 4 MB bound its memory. Both sides are
timed from the start of a fresh process to the last byte written, imports and loading included. Memory is the sum of the
resident sets of the process and all below it, sampled 20 times a second.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.records import recording
from modules.tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PEER_BATCH = 1 << 22
NEXT_SPACE = re.compile(r"(?<=\S)(?=\s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="+", default=[6, 200], help="sizes of the corpus in MB (default 6 200)")
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
    parser.add_argument("--cores", type=int, nargs="+", help="numbers of cores (default: all)")
    parser.add_argument("--keep", action="store_true", help="leave the corpora, ids and .h5 there")
    args = parser.parse_args()
    if args.side == "ours":
        ours(text_of(args, args.mb[0]), args.tokenizer_path, args.cores[0])
    elif args.side == "peer":
        size = min(args.peer_mb or args.mb[0], args.mb[0]) * 10**6
        peer(text_of(args, args.mb[0]), args.tokenizer_path, args.folder / "peer.ids", size, args.peer_characters)
    else:
        with recording("tokenize"):
            print(
                "| MB | cores | side | on MB | s | MB/s | ratio | MB/CPU s | ratio | peak memory, MB "
                "| make_h5, MB/s of ids | load |\n" + "|---" * 12 + "|"
            )
            for megabytes in args.mb:
                compare(args, megabytes)


def text_of(args: argparse.Namespace, megabytes: int) -> Path:
    return args.folder / f"corpus_{megabytes}_{args.noise:g}" / "corpus.txt"


def compare(args: argparse.Namespace, megabytes: int) -> None:
    """Make the corpus, run both sides in processes of their own, compare their ids, print rows of the table."""
    text = text_of(args, megabytes)
    if not text.exists():
        make_corpus(text, megabytes * 10**6, args.noise)
    for cores in args.cores or [len(os.sched_getaffinity(0))]:
        rates = {}
        for side, given in (("peer", min(args.peer_mb or megabytes, megabytes)), ("ours", megabytes)):
            load = os.getloadavg()[0]
            seconds, cpu_seconds, peak, said = run(args, side, megabytes, cores)
            rates[side] = given / seconds, given / cpu_seconds
            wall, cpu = (our / their for our, their in zip(rates[side], rates["peer"], strict=True))
            print(
                f"| {megabytes} | {cores} | {side} | {given} | {seconds:.2f} | {rates[side][0]:.1f} | {wall:.1f} | "
                f"{rates[side][1]:.1f} | {cpu:.1f} | {peak / 1e6:.0f} | {said} | {load:.1f} |",
                flush=True,
            )
        count = same_ids(args.folder / "peer.ids", text.parent / "out" / "corpus.h5")
        print(f"  {megabytes} MB: {count:,} ids compared, identical", file=sys.stderr)
    if not args.keep:
        shutil.rmtree(text.parent)
        (args.folder / "peer.ids").unlink()


def run(args: argparse.Namespace, side: str, megabytes: int, cores: int) -> tuple[float, float, int, str]:
    """Seconds, CPU seconds, peak memory of the process tree, and what the child printed."""
    options = {
        "--mb": megabytes,
        "--folder": args.folder,
        "--tokenizer_path": args.tokenizer_path,
        "--noise": args.noise,
        "--peer_characters": args.peer_characters,
        "--side": side,
        "--cores": cores,
    } | ({"--peer_mb": args.peer_mb} if args.peer_mb else {})
    command = [sys.executable, "-m", "benchmarks.bench_tokenize"]
    command += [str(word) for pair in options.items() for word in pair]
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    began, cpu_before = time.monotonic(), cpu_of_children()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),  # no threads here, which it could lock
        env=os.environ | {"RAYON_NUM_THREADS": str(cores)},
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(resident_sizes(process.pid)))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{side} on {cores} cores failed")
    return seconds, cpu_of_children() - cpu_before, peak, process.communicate()[0].strip()


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
    from modules.tok_utils import make_h5, tokenize_folder  # here and not above: their start-up is ours alone

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
    from modules.tok_utils.cuts import BEFORE_SPACE

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
    import h5py

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
        from modules.corpora.docstrings import write_docstring_corpus

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
