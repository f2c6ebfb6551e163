"""Reading windows: one gather from a memory map of the contiguous .h5, beside one h5py slice an item as usual data sets
do it.

    python -m benchmarks.bench_data

Prints Markdown rows: tokens/s, and what the order of windows and the whole batch cost. The two ways take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from benchmarks.records import recording
from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Cut, split, step_order

VOCAB_SIZE = 50257


def write_both(folder: Path, count: int) -> tuple[Path, Path]:
    """The same random tokens as our contiguous uint16, and as the older chunked, extendable int32."""
    tokens = np.random.default_rng(0).integers(1, VOCAB_SIZE, count)
    contiguous, chunked = folder / "contiguous.h5", folder / "chunked.h5"
    with h5py.File(contiguous, "w") as file:
        file["tokens"] = tokens.astype(np.uint16)
    with h5py.File(chunked, "w") as file:
        file.create_dataset("tokens", data=tokens.astype(np.int32), maxshape=(None,), chunks=True)
    return contiguous, chunked


def tokens_per_s(work, tokens: int, seconds: float) -> float:
    """How fast `work(step)`, which handles `tokens` a call, goes."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work(calls)
        calls += 1
    return calls * tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="tokens in the file (default %(default)s)")
    parser.add_argument("--batch", type=int, default=180)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with recording("data"):
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Every way of reading in turns, and a row for each."""
    batch, length = options.batch, options.context

    with tempfile.TemporaryDirectory() as folder:
        contiguous, chunked = write_both(Path(folder), options.tokens)
        token_file = open_tokens(contiguous)
        training, _ = split(token_file, Cut(length, length // 2, batch, batch), READ_FORWARD)
        with h5py.File(chunked) as file:
            slices = file["tokens"]

            def order(step: int) -> np.ndarray:
                return step_order(step % (len(training) // batch), batch, len(training), seed=0)

            def one_by_one(step: int) -> np.ndarray:
                starts = ordered[step % len(ordered)] * training.stride
                return np.stack([slices[start : start + length] for start in starts])

            ordered = [order(step) for step in range(200)]
            ways = {
                "one h5py slice an item (chunked int32)": one_by_one,
                "one gather a batch from the memory map": lambda step: token_file.gather(
                    ordered[step % 200] * training.stride, length
                ),
                "the same, whole batch: order, gather, BOS, tensors": lambda step: training.batch(order(step)),
                "order of windows alone": order,
            }
            turns = [
                [tokens_per_s(way, batch * length, options.seconds) for way in ways.values()]
                for _ in range(options.rounds)
            ]

    print(
        f"{options.tokens:,} tokens, batches of {batch} windows of {length}, "
        f"{options.rounds} turns of {options.seconds:g} s\n"
    )
    print("| way | M tokens/s | times the first |\n|---|---|---|")
    for i, name in enumerate(ways):
        speed, ratio = (
            statistics.median(column) for column in zip(*((turn[i], turn[i] / turn[0]) for turn in turns), strict=True)
        )
        print(f"| {name} | {speed / 1e6:,.1f} | {ratio:,.0f} |")


if __name__ == "__main__":
    main()
