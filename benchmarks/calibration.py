"""The instrument shown sources whose answer is known:

    python -m benchmarks.calibration [null entropy strong] [--runs 80]

    null     time-symmetric sources: 95 % intervals must cover zero in about 95 % of simulated measurements, whatever
             the number of seeds; with --folds for five seeds that hold out a fold each
    entropy  sources of known entropy: both directions must come within 1 % of it, from above
    strong   circuits over F2 and products of primes (configs/synthetic): the arrow must be told from zero; and with the
             text written backward, it must change its sign and nothing else

Every measurement goes through the project's own tokenizer, .h5, windows, trainer and statistics; only states and
metrics are not written. A simulated measurement of `null` is a new source, a new text, eight seeds and both directions:
sixteen trainings of a model so small that they take some ten seconds together. Fewer seeds are parts of the same eight
that share none: eight times one, four times two, twice three, once five. No number is a seed twice, in whichever part,
source and measurement (`numbers_of`).

The losses of each measurement (of each seed, in `strong`) stay in --folder, so a run that was ended goes on where it
was, --runs can grow later, and --show prints the tables of what is there and trains nothing. After a change of what is
measured, name another folder. It prints Markdown, and tests/test_calibration.py runs a small version.
"""

import argparse
import collections
import contextlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.records import recording
from configs.make_configs import synthetic
from modules.config import Config, parse_config
from modules.corpora import synthetic as sources
from modules.corpora.docstrings import write_docstring_corpus
from modules.measurement import arrow, contrast
from modules.measurement.evaluation import held_out_ids
from modules.measurement.noise import Estimate
from modules.measurement.report import interval, table
from modules.models.evaluate import held_out_losses
from modules.system.console import bar
from modules.system.errors import UserError, one_line_errors
from modules.system.files import replacing
from modules.tok_utils import create_tokenizer
from modules.tok_utils.encoder import Encoder, id_dtype
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training.loop import Training, steps
from modules.training.parallel import Processes
from modules.training.run import data_of, last_step_of, prepare

CPU = Processes(0, 1, torch.device("cpu"))


# One measurement
# --------------------------------------------------------------------------------------------------------


def character_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level tokenizer without merges: a character of ASCII text is a token."""
    (folder / "any.txt").write_text("any text will do: there is nothing to learn")
    return get_tokenizer(
        create_tokenizer(str(folder / "any.txt"), str(folder), tokenizer_name="characters", vocab_size=257)
    )


def write_tokens(path: Path, text: str | np.ndarray, toki: Tokenizer) -> Path:
    """A dataset file of a text or of its ids, as make_h5 writes it, without its files in between."""
    ids = Encoder(toki, fast=True).encode(text.encode("utf-8")) if isinstance(text, str) else text
    with h5py.File(path, "w") as file:
        tokens = file.create_dataset("tokens", data=ids.astype(id_dtype(toki.vocab_size)))
        tokens.attrs.update(
            {"vocab_size": toki.vocab_size, "tokenizer_fingerprint": toki.fingerprint, "bos_id": toki.bos_id}
        )
    return path


def small_config(
    data: Path, context: int, width: int, batch_size: int, steps: int, valid_steps: int, vocab_size: int = 257
) -> Config:
    """One layer, two heads, trained fast."""
    return parse_config(
        {
            "model": "gpt",
            "model_params": {
                "vocab_size": vocab_size,
                "n_layers": 1,
                "n_heads": 2,
                "embed_dim": width,
                "attn_length": context,
                "dropout": 0.0,
            },
            "training_params": {
                "dataset_folder": str(data),
                "batch_size": batch_size,
                "steps_to_train": steps,
                "valid_steps": valid_steps,
                "save_every": steps,
                "backup_every": steps,
                "precision": "fp32",
            },
            "optim_params": {
                "lr": 0.01,
                "warmup_steps": steps // 10,
                "oscil_steps": steps - steps // 10,
                "lr_init": 1e-4,
                "lr_min": 3e-4,
            },
        },
        data.stem,
    )


def trained(config: Config) -> Training:
    """The run of a config, trained to its end in this process; nothing is written."""
    training = prepare(config, data_of(config, None, CPU), CPU)
    collections.deque(steps(training, last_step_of(config, len(training.windows))), maxlen=0)
    return training


def measure(config: Config, seeds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Forward and backward held-out losses, nats [seeds, windows, tokens] in text order, of models trained from these
    seeds."""
    losses = {False: [], True: []}
    for seed in seeds:
        for backwards, collected in losses.items():
            training = trained(config.with_training(seed=seed, backwards=backwards))
            collected.append(
                held_out_losses(training.model, training.held_out, config.valid_batch_size, CPU.device, progress=False)
            )
    return np.stack(losses[False]), np.stack(losses[True])


# Measurements that stay
# -------------------------------------------------------------------------------------------------

NULLS = {
    "markov": "reversible Markov chain",
    "iid": "independent tokens",
    "mirrored": "a text and its mirror image",
    "real": "real documents, half of them mirrored",
}
STRONG = {
    "circuit": "circuit over F2, 10 bits",
    "circuit_mirrored": "the same, mirrored",
    "primes": "products of primes of 3 digits",
    "primes_mirrored": "the same, mirrored",
}
ENTROPIES = ("entropy_markov", "entropy_iid")
NUMBERS = 10**7  # of a source
NUMBERS_A_RUN = 10  # one for the text, and up to nine seeds
SEEDS, FOLDS = 8, 5  # of a measurement of `null`: where all hold out the same text, and where each has a fold


def numbers_of(source: str, run: int = 0) -> range:
    """The numbers of a measurement, which no other has: the text's, and then the seeds of its trainings. `strong` has
    one run."""
    first = NUMBERS * [*NULLS, *STRONG, *ENTROPIES].index(source)
    return (
        range(first, first + NUMBERS)
        if source in STRONG
        else range(first + run * NUMBERS_A_RUN, first + (run + 1) * NUMBERS_A_RUN)
    )


@dataclass(frozen=True)
class Job:
    """Trainings in both directions from some seeds on one text, and the file that keeps their losses. folds: whether
    each seed holds out another part of it."""

    source: str
    text_number: int
    seeds: range
    folder: Path
    folds: bool = False

    @property
    def path(self) -> Path:
        folds = "_folds" if self.folds else ""
        return self.folder / f"{self.source}_{self.seeds[0]}-{self.seeds[-1]}{folds}.npz"


def null_job(source: str, run: int, folder: Path, n_seeds: int | None = None, folds: bool = False) -> Job:
    numbers = numbers_of(source, run)
    return Job(source, numbers[0], numbers[1 : (n_seeds or (FOLDS if folds else SEEDS)) + 1], folder, folds)


def strong_job(source: str, seed: int, folder: Path) -> Job:
    """The `seed`th of a strong source, from 0. The text is that of configs/README.md."""
    return Job(source, 0, numbers_of(source)[seed : seed + 1], folder)


def do(job: Job, steps: int | None = None) -> dict[str, np.ndarray]:
    """Train, and keep the losses: "forward" and "backward", nats [seeds, windows], and "seconds" of CPU time.

    steps: instead of those of the config, for tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = text_of(job)
        toki = get_tokenizer(job.folder / ("docstrings" if job.source == "real" else "characters"))
        config = config_of(job.source, write_tokens(Path(folder) / f"{job.source}.h5", text, toki), steps, job.folds)
        start = time.process_time()
        forward, backward = measure(config, job.seeds)
    found = {
        "forward": forward.mean(axis=2),
        "backward": backward.mean(axis=2),
        "seconds": np.array(time.process_time() - start),
        "settings": np.array(settings_of(config)),
    }
    with replacing(job.path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found)
    return found


def config_of(source: str, data: Path, steps: int | None = None, folds: bool = False) -> Config:
    if source in STRONG:
        config = parse_config({"model": "gpt"} | synthetic()[f"synthetic/{source.removesuffix('_mirrored')}"], source)
        return config.with_training(dataset_folder=str(data))
    config = small_config(
        data,
        context=16,
        width=16,
        batch_size=32,
        steps=steps or 150,
        valid_steps=20,
        vocab_size=REAL_VOCAB if source == "real" else 257,
    )
    return config.with_training(held_out_fold="by_seed" if folds else "last")


def settings_of(config: Config) -> str:
    """What decides the losses, beside text, seed and direction."""
    return json.dumps(
        config.with_training(dataset_folder="any.h5", seed=0, backwards=False).model_dump(mode="json"), sort_keys=True
    )


def kept(job: Job) -> dict[str, np.ndarray] | None:
    """What `do` has kept; None where it has not yet. Raises UserError where the file was made with other settings."""
    if not job.path.exists():
        return None
    with np.load(job.path) as file:
        found = dict(file)
    if str(found["settings"]) != settings_of(config_of(job.source, Path("any.h5"), folds=job.folds)):
        raise UserError(
            f"{job.path}: expected losses of the settings that this program trains with, found others; name another "
            "--folder"
        )
    return found


def do_all(jobs: Sequence[Job], processes: int) -> None:
    """Do what is not done yet, in processes of one thread."""
    pending = [job for job in jobs if kept(job) is None]
    if not pending:
        return
    materials(pending[0].folder, real=any(job.source == "real" for job in pending))
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        for future in bar(
            as_completed([pool.submit(do, job) for job in pending]),
            total=len(pending),
            unit=" measurements",
            desc="calibration",
        ):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


# No false arrows
# --------------------------------------------------------------------------------------------------------

CHARACTERS = 60_000  # of a simulated text; a training of 150 steps sees 77,000 tokens of its half-overlapping windows
REAL_MB, REAL_VOCAB = 6, 512
SEPARATOR = b"\n"  # between documents


def materials(folder: Path, real: bool) -> None:
    """The tokenizers in `folder`; with `real`, the docstrings too, and their ids. What is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "characters").exists():
        character_tokenizer(folder)
    text, ids = folder / "docstrings.txt", folder / "docstrings.npz"
    if real and not ids.exists():
        if not text.exists():
            write_docstring_corpus(text, REAL_MB)
        toki = get_tokenizer(create_tokenizer(text, folder, tokenizer_name="docstrings", vocab_size=REAL_VOCAB))
        documents = [each for each in text.read_text(encoding="utf-8").split("\n\n") if each]
        encode = Encoder(toki, fast=True).encode
        ids_of = [encode(each.encode("utf-8")) for each in documents]
        with replacing(ids) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                ids=np.concatenate(ids_of),
                ends=np.cumsum([len(each) for each in ids_of]),
                separator=encode(SEPARATOR),
            )


@cache
def real_documents(folder: Path) -> tuple[list[np.ndarray], int]:
    """Docstrings as ids, and the id that stands between two."""
    with np.load(folder / "docstrings.npz") as file:
        return np.split(file["ids"], file["ends"][:-1]), int(file["separator"].item())


def text_of(job: Job) -> str | np.ndarray:
    """The text of a measurement, or its ids."""
    number, half = job.text_number, CHARACTERS // 2
    match job.source:
        case "markov":
            return "".join(sources.markov_chain(CHARACTERS, 6, number))
        case "iid":
            return "".join(sources.iid(CHARACTERS, 6, number))
        case "mirrored":  # a text with a strong arrow, together with its mirror image
            circuit = sources.linear_circuit(half // sources.linear_circuit_line(3), 3, number)
            return "".join(sources.with_mirror_image(circuit, block=512))
        case "real":
            return sources.turned_by_coin(*real_documents(job.folder), CHARACTERS, number)
        case "circuit" | "circuit_mirrored":
            text = "".join(sources.linear_circuit(LINES, bits=10, seed=number))
        case "primes" | "primes_mirrored":
            text = "".join(sources.prime_products(LINES, digits=3, seed=number))
        case unknown:
            raise ValueError(f"expected one of {[*NULLS, *STRONG]}, found {unknown}")
    return text[::-1] if job.source.endswith("mirrored") else text


def arrows(losses: dict[str, np.ndarray], n_seeds: int, folds: bool = False) -> list[arrow.Arrow]:
    """The arrows that as many of a measurement's seeds find, each with seeds of its own."""
    forward_SW, backward_SW = losses["forward"], losses["backward"]
    return [
        arrow.measure(
            forward_SW[first : first + n_seeds, :, None], backward_SW[first : first + n_seeds, :, None], folds=folds
        )
        for first in range(0, len(forward_SW) - n_seeds + 1, n_seeds)
    ]


def covers(found: arrow.Arrow, kind: str = "both") -> bool:
    """Whether the interval of this kind ("windows", "seeds", "both") holds zero."""
    low, high = getattr(found.percent, kind)
    return low <= 0 <= high


def share(part: int, whole: int) -> str:
    return f"{part} of {whole}, {100 * part / whole:.0f} %"


def null(runs: int, folder: Path, folds: bool) -> str:
    rows, means = [], []
    for source, title in NULLS.items():
        jobs = [null_job(source, run, folder, folds=folds) for run in range(runs)]
        measurements = [found for job in jobs if (found := kept(job)) is not None]
        if len(measurements) < 2:
            continue
        for n_seeds in (2, 3, 5) if folds else (1, 2, 3, 5, 8):
            found = [each for losses in measurements for each in arrows(losses, n_seeds, folds)]
            kinds = ("both", "seeds", "windows") if n_seeds > 1 else ()  # one seed has no verdict
            cells = [share(sum(covers(each, kind) for each in found), len(found)) for kind in kinds] or [
                "no verdict",
                "",
                "",
            ]
            width = np.median([(high - low) / 2 for low, high in (each.percent.both for each in found)])
            rows.append([title, n_seeds, *cells, f"{width:.3f} %"])
        values = [arrows(losses, len(losses["forward"]), folds)[0].percent.value for losses in measurements]
        seconds = sum(float(losses["seconds"]) for losses in measurements)
        means.append(
            f"- {title}: {np.mean(values):+.4f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f} % "
            f"({len(measurements)} measurements, {seconds:.0f} s of CPU time)"
        )
    header = ["source", "seeds", "both cover 0", "seeds alone", "windows alone", "median half-width (both)"]
    return "\n\n".join(
        [
            "## No false arrows",
            table(header, rows),
            "Mean arrow of all measurements, with its standard error:",
            "\n".join(means),
        ]
    )


# True entropies
# ---------------------------------------------------------------------------------------------------------


def entropy_row(
    name: str,
    seed: int,
    text: str,
    floor: float,
    config_of: Callable[[Path], Config],
    law: Callable[[np.ndarray], np.ndarray],
) -> dict:
    """Losses of both directions against the true entropy `floor`, and against what the exact `law` loses on the same
    held-out text."""
    with tempfile.TemporaryDirectory() as folder:
        toki = character_tokenizer(Path(folder))
        config = config_of(write_tokens(Path(folder) / "entropy.h5", text, toki))
        forward, backward = measure(config, [seed])
        held_out = data_of(config, None, CPU).held_out
        symbol_of_id = np.zeros(toki.vocab_size, dtype=np.int64)
        for number, letter in enumerate(sources.SYMBOLS):
            symbol_of_id[toki.encode(letter)[0]] = number
        exact = law(symbol_of_id[held_out_ids(held_out)])
    return {
        "name": name,
        "entropy": floor,
        "exact": float(exact.mean()),
        "forward": float(forward.mean()),
        "backward": float(backward.mean()),
    }


def entropy_rows(characters: int = 1_500_000, steps: int = 800) -> list[dict]:
    """A chain and independent symbols, of eight letters each."""
    context = 32

    def config_of(data: Path) -> Config:
        return small_config(data, context, width=32, batch_size=64, steps=steps, valid_steps=100)

    chain_number, chain_seed = numbers_of("entropy_markov")[:2]
    iid_number, iid_seed = numbers_of("entropy_iid")[:2]
    transitions, stationary = sources.markov_rule(8, chain_number)
    law = sources.iid_rule(8, iid_number)

    def chain_losses(states_WT: np.ndarray) -> np.ndarray:
        return -np.concatenate(
            [np.log(stationary)[states_WT[:, :1]], np.log(transitions)[states_WT[:, :-1], states_WT[:, 1:]]], axis=1
        )

    return [
        entropy_row(
            "reversible Markov chain",
            chain_seed,
            "".join(sources.markov_chain(characters, 8, chain_number)),
            sources.markov_chain_entropy(8, chain_number, window=context),
            config_of,
            chain_losses,
        ),
        entropy_row(
            "independent tokens",
            iid_seed,
            "".join(sources.iid(characters, 8, iid_number)),
            sources.iid_entropy(8, iid_number),
            config_of,
            lambda symbols_WT: -np.log(law)[symbols_WT],
        ),
    ]


def entropy() -> str:
    rows = [
        [
            row["name"],
            f"{row['entropy']:.5f}",
            f"{row['exact']:.5f}",
            *(f"{row[way]:.5f} ({100 * (row[way] / row['exact'] - 1):+.3f} %)" for way in ("forward", "backward")),
        ]
        for row in entropy_rows()
    ]
    header = ["source", "true entropy", "the exact law on this held-out text", "forward", "backward"]
    return (
        "## True entropies (nats per token)\n\n"
        + table(header, rows)
        + "\n\nPercentages are against the exact law on the same held-out "
        "text, which leaves out the chance of the text itself."
    )


# Strong arrows and mirrors
# ----------------------------------------------------------------------------------------------

LINES = 200_000  # of a synthetic text: more than a training reads


def strong(n_seeds: int, folder: Path) -> str:
    """Strong arrows; and those of the same texts written backward, which must be the same with the opposite sign."""
    rows, halves = [], []
    for name, floor in (("circuit", sources.linear_circuit_entropy(10)), ("primes", sources.prime_products_entropy(3))):
        both_ways = []
        for source in (name, f"{name}_mirrored"):
            measured = [
                found for seed in range(n_seeds) if (found := kept(strong_job(source, seed, folder))) is not None
            ]
            if len(measured) < 2:
                break
            losses = {way: np.concatenate([each[way] for each in measured]) for way in ("forward", "backward")}
            found = arrow.measure(losses["forward"][..., None], losses["backward"][..., None])
            # In nats: of arrows so large, percents of two different forward losses do not add up to zero.
            both_ways.append(arrow.sample(losses["forward"][..., None], losses["backward"][..., None], unit="nats"))
            rows.append(
                [
                    STRONG[source],
                    len(measured),
                    *(f"{loss:.4f}" for loss in (floor, found.forward, found.backward)),
                    *in_nats(found.nats),
                    f"{found.percent.value:+.1f} %",
                    f"{sum(float(each['seconds']) for each in measured) / (2 * len(measured)):.0f} s",
                ]
            )
        if len(both_ways) == 2:
            n = min(len(each.parts) for each in both_ways)
            turns, stays = contrast.turning(*(first_seeds(each, n) for each in both_ways))
            halves.append([STRONG[name], "turns round with the text", *in_nats(turns)])
            halves.append([STRONG[name], "does not", *in_nats(stays)])
    header = [
        "source",
        "seeds",
        "true entropy",
        "forward",
        "backward",
        "arrow",
        "95 % (both)",
        "p",
        "in percent",
        "a training, one core",
    ]
    return "\n\n".join(
        [
            "## No missed arrows, and mirrors (nats per token)",
            table(header, rows),
            "The half of each arrow that turns round with the text, and the half that does not:",
            table(["source", "half", "nats per token", "95 % (both)", "p"], halves),
        ]
    )


def first_seeds(sample: arrow.Sample, n: int) -> arrow.Sample:
    """The sample of its first `n` seeds."""
    parts = sample.parts[:n]
    return arrow.Sample(sample.value + float(parts.mean()), parts - parts.mean())


def in_nats(estimate: Estimate) -> tuple[str, str, str]:
    return f"{estimate.value:+.4f}", interval(estimate.both, 4), f"{estimate.p:.2g}"


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="null, entropy or strong (default: all)")
    parser.add_argument(
        "--runs", type=int, default=80, help="measurements of each time-symmetric source (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each strong source (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/calibration"), help="where losses stay (default %(default)s)"
    )
    parser.add_argument("--folds", action="store_true", help="null: each of five seeds holds out a fold of its own")
    parser.add_argument("--show", action="store_true", help="train nothing: the tables of what the folder holds")
    args = parser.parse_args()
    if unknown := set(args.parts) - {"null", "entropy", "strong"}:
        parser.error(f"expected some of null, entropy and strong, found {', '.join(unknown)}")
    if args.runs < 2 or not 2 <= args.seeds <= NUMBERS or args.jobs < 1:
        parser.error("expected at least two runs, two seeds and one process")
    torch.set_num_threads(1)
    jobs = {
        "null": [null_job(source, run, args.folder, folds=args.folds) for run in range(args.runs) for source in NULLS],
        "strong": [strong_job(source, seed, args.folder) for seed in range(args.seeds) for source in STRONG],
        "entropy": [],
    }
    tables = {
        "null": lambda: null(args.runs, args.folder, args.folds),
        "strong": lambda: strong(args.seeds, args.folder),
        "entropy": entropy,
    }
    with contextlib.nullcontext() if args.show else recording("calibration"):
        for part in args.parts or tables:
            start = time.perf_counter()
            if not args.show:
                do_all(jobs[part], args.jobs)
            elif part == "entropy":
                continue  # keeps nothing
            print(f"{tables[part]()}\n\n{time.perf_counter() - start:.0f} s.\n", flush=True)


if __name__ == "__main__":
    main()
