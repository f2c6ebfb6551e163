"""The instrument shown sources whose answer is known:  python -m benchmarks.calibration [null entropy strong] [--runs 80]

    null     time-symmetric sources: 95 % intervals must cover zero in 90 to 99 % of simulated measurements
    entropy  sources of known entropy: both directions must come within 1 % of it, from above
    strong   circuits over F2 and products of primes (configs/synthetic): the arrow must be large; and with the text
             written backward, it must change its sign and nothing else (24 trainings: half an hour)

Every measurement goes through the project's own text, tokenizer, .h5, windows, trainer and statistics; only states and metrics are
not written. A simulated measurement of `null` is a new source, a new text, three seeds and both directions: six trainings
of a model so small that they take three seconds together. It prints Markdown tables, and tests/test_calibration.py runs a small version.
"""
import argparse
import collections
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from configs.make_configs import synthetic
from modules import arrow, sources
from modules.comparison import held_out_ids
from modules.config import Config, parse_config
from modules.evaluate import held_out_losses
from modules.parallel import Processes
from modules.report import interval, table
from modules.run import data_of, prepare
from modules.tok_utils import create_tokenizer
from modules.tok_utils.encoder import Encoder, id_dtype
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.trainer import Training, steps

CPU = Processes(0, 1, torch.device("cpu"))


# One measurement --------------------------------------------------------------------------------------------------------

def character_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level tokenizer without merges: a character of ASCII text is a token."""
    (folder / "any.txt").write_text("any text will do: there is nothing to learn")
    return get_tokenizer(create_tokenizer(str(folder / "any.txt"), str(folder), tokenizer_name="characters", vocab_size=257))


def write_tokens(path: Path, text: str, toki: Tokenizer) -> Path:
    """A dataset file, as make_h5 writes it, without its files in between."""
    with h5py.File(path, "w") as file:
        ids = Encoder(toki, fast=True).encode(text)
        tokens = file.create_dataset("tokens", data=ids.astype(id_dtype(toki.vocab_size)))
        tokens.attrs.update({"vocab_size": toki.vocab_size, "tokenizer_fingerprint": toki.fingerprint, "bos_id": toki.bos_id,
                             "text_bytes": len(text.encode("utf-8"))})
    return path


def small_config(data: Path, context: int, width: int, batch_size: int, steps: int, valid_steps: int) -> Config:
    """One layer, two heads, trained fast."""
    return parse_config({
        "model": "gpt",
        "model_params": {"vocab_size": 257, "n_layers": 1, "n_heads": 2, "embed_dim": width, "attn_length": context, "dropout": 0.0},
        "training_params": {"dataset_folder": str(data), "batch_size": batch_size, "steps_to_train": steps, "valid_steps": valid_steps,
                            "save_every": steps, "backup_every": steps, "precision": "fp32"},
        "optim_params": {"lr": 0.01, "warmup_steps": steps // 10, "oscil_steps": steps - steps // 10, "lr_init": 1e-4, "lr_min": 3e-4}},
        data.stem)


def trained(config: Config) -> Training:
    """The run of a config, trained to its end in this process; nothing is written."""
    training = prepare(config, data_of(config, None, CPU), CPU)
    collections.deque(steps(training, config.training_params.steps_to_train), maxlen=0)
    return training


def measure(config: Config, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Forward and backward held-out losses, nats [seeds, windows, tokens] in text order, of models trained from `n_seeds` seeds."""
    losses = {False: [], True: []}
    for seed in range(n_seeds):
        for backwards, collected in losses.items():
            training = trained(config.with_training(seed=seed, backwards=backwards))
            collected.append(held_out_losses(training.model, training.held_out, config.valid_batch_size, CPU.device, progress=False))
    return np.stack(losses[False]), np.stack(losses[True])


# No false arrows --------------------------------------------------------------------------------------------------------

CHARACTERS = 60_000  # of a simulated text; a training of 150 steps sees 77,000 tokens of its half-overlapping windows


def markov_text(seed: int) -> Iterable[str]:
    return sources.markov_chain(CHARACTERS, 6, seed)


def iid_text(seed: int) -> Iterable[str]:
    return sources.iid(CHARACTERS, 6, seed)


def mirrored_text(seed: int) -> Iterable[str]:
    """A text with a strong arrow, together with its mirror image."""
    half = CHARACTERS // 2
    return sources.with_mirror_image(sources.linear_circuit(half // sources.linear_circuit_line(3), 3, seed), block=512)


SYMMETRIC = {"reversible Markov chain": markov_text, "independent tokens": iid_text, "a text and its mirror image": mirrored_text}


def null_arrows(text_of: Callable[[int], Iterable[str]], runs: int, n_seeds: int = 3, steps: int = 150) -> list[arrow.Arrow]:
    """`runs` simulated measurements of a time-symmetric source, each with a source and a text of its own."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        toki = character_tokenizer(Path(folder))
        for run in tqdm(range(runs), desc=text_of.__name__, unit="measurement"):
            data = write_tokens(Path(folder) / "null.h5", "".join(text_of(run)), toki)
            config = small_config(data, context=16, width=16, batch_size=32, steps=steps, valid_steps=20)
            found.append(arrow.measure(*measure(config, n_seeds)))
    return found


def coverage(found: Sequence[arrow.Arrow], kind: str) -> float:
    """In which share of the measurements the interval of this kind ("windows", "seeds", "both") holds zero."""
    return float(np.mean([getattr(each.nats, kind)[0] <= 0 <= getattr(each.nats, kind)[1] for each in found]))


def null(runs: int) -> str:
    rows = []
    for name, text_of in SYMMETRIC.items():
        found = null_arrows(text_of, runs)
        percents = np.array([each.percent.value for each in found])
        rows.append([name, runs, *(f"{100 * coverage(found, kind):.0f} %" for kind in ("windows", "seeds", "both")),
                     f"{percents.mean():+.3f} ± {percents.std(ddof=1) / math.sqrt(runs):.3f} %",
                     f"{np.median([(each.percent.both[1] - each.percent.both[0]) / 2 for each in found]):.3f} %"])
    header = ["source", "measurements", "windows cover 0", "seeds cover 0", "both cover 0", "mean arrow", "median half-width (both)"]
    return "## No false arrows\n\n" + table(header, rows)


# True entropies ---------------------------------------------------------------------------------------------------------

def entropy_row(name: str, text: str, floor: float, config_of: Callable[[Path], Config],
                law: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Losses of both directions against the true entropy `floor`, and against what the exact `law` loses on the same held-out text."""
    with tempfile.TemporaryDirectory() as folder:
        toki = character_tokenizer(Path(folder))
        config = config_of(write_tokens(Path(folder) / "entropy.h5", text, toki))
        forward, backward = measure(config, 1)
        held_out = data_of(config, None, CPU).held_out
        symbol_of_id = np.zeros(toki.vocab_size, dtype=np.int64)
        for number, letter in enumerate(sources.SYMBOLS):
            symbol_of_id[toki.encode(letter)[0]] = number
        exact = law(symbol_of_id[held_out_ids(held_out)])
    return {"name": name, "entropy": floor, "exact": float(exact.mean()),
            "forward": float(forward.mean()), "backward": float(backward.mean())}


def entropy_rows(characters: int = 1_500_000, steps: int = 800) -> list[dict]:
    """A chain and independent symbols, of eight letters each."""
    context = 32

    def config_of(data: Path) -> Config:
        return small_config(data, context, width=32, batch_size=64, steps=steps, valid_steps=100)

    transitions, stationary = sources.markov_rule(8, seed=0)
    law = sources.iid_rule(8, seed=0)

    def chain_losses(states_WT: np.ndarray) -> np.ndarray:
        return -np.concatenate([np.log(stationary)[states_WT[:, :1]], np.log(transitions)[states_WT[:, :-1], states_WT[:, 1:]]], axis=1)

    return [entropy_row("reversible Markov chain", "".join(sources.markov_chain(characters, 8)),
                        sources.markov_chain_entropy(8, window=context), config_of, chain_losses),
            entropy_row("independent tokens", "".join(sources.iid(characters, 8)), sources.iid_entropy(8), config_of,
                        lambda symbols_WT: -np.log(law)[symbols_WT])]


def entropy() -> str:
    rows = [[row["name"], f"{row['entropy']:.5f}", f"{row['exact']:.5f}",
             *(f"{row[way]:.5f} ({100 * (row[way] / row['exact'] - 1):+.3f} %)" for way in ("forward", "backward"))]
            for row in entropy_rows()]
    header = ["source", "true entropy", "the exact law on this held-out text", "forward", "backward"]
    return ("## True entropies (nats per token)\n\n" + table(header, rows) + "\n\nPercentages are against the exact law on the same held-out "
            "text, which leaves out the chance of the text itself.")


# Strong arrows and mirrors ----------------------------------------------------------------------------------------------

LINES = 200_000  # of a synthetic text: more than a training reads


def synthetic_config(name: str, data: Path) -> Config:
    """The config of configs/synthetic on this data."""
    return parse_config({"model": "gpt"} | synthetic()[f"synthetic/{name}"], name).with_training(dataset_folder=str(data))


def arrow_of(name: str, text: str, n_seeds: int) -> tuple[arrow.Arrow, float]:
    """The arrow of a synthetic text with the config of its name, and the seconds that one direction of one seed took."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_tokens(Path(folder) / f"{name}.h5", text, character_tokenizer(Path(folder)))
        start = time.process_time()
        found = arrow.measure(*measure(synthetic_config(name, data), n_seeds))
    return found, (time.process_time() - start) / (2 * n_seeds)


def sum_of(one: arrow.Estimate, other: arrow.Estimate) -> tuple[float, float]:
    """The sum of two independent estimates and the half-width of its 95 % interval."""
    return one.value + other.value, math.hypot(*((each.both[1] - each.both[0]) / 2 for each in (one, other)))


def strong(n_seeds: int) -> str:
    """Strong arrows; and those of the same texts written backward, which must be the same with the opposite sign."""
    circuits, primes = "".join(sources.linear_circuit(LINES, bits=10)), "".join(sources.prime_products(LINES, digits=3))
    rows, sums = [], []
    for title, name, text, floor in (("circuit over F2, 10 bits", "circuit", circuits, sources.linear_circuit_entropy(10)),
                                     ("products of primes of 3 digits", "primes", primes, sources.prime_products_entropy(3))):
        both_ways = []
        for shown_title, shown in ((title, text), ("the same, mirrored", text[::-1])):
            found, seconds = arrow_of(name, shown, n_seeds)
            both_ways.append(found.nats)
            rows.append([shown_title, *(f"{loss:.4f}" for loss in (floor, found.forward, found.backward)), f"{found.nats.value:+.4f}",
                         interval(found.nats.both, 4), f"{found.percent.value:+.1f} %", f"{seconds:.0f} s"])
        total, half_width = sum_of(*both_ways)
        sums.append(f"{title}: the arrow and its mirror's add up to {total:+.4f} ± {half_width:.4f} (95 %).")
    header = ["source", "true entropy", "forward", "backward", "arrow", "95 % (both)", "in percent", "a training, one core"]
    return "\n\n".join([f"## No missed arrows, and mirrors (nats per token, {n_seeds} seeds)", table(header, rows), *sums])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="null, entropy or strong (default: all)")
    parser.add_argument("--runs", type=int, default=80, help="measurements of each time-symmetric source (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of strong (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"null": lambda: null(args.runs), "entropy": entropy, "strong": lambda: strong(args.seeds)}
    if unknown := set(args.parts) - set(parts):
        parser.error(f"expected some of {', '.join(parts)}, found {', '.join(unknown)}")
    for name in args.parts or parts:
        start = time.process_time()
        print(f"{parts[name]()}\n\n{time.process_time() - start:.0f} s on one core.\n", flush=True)


if __name__ == "__main__":
    main()
