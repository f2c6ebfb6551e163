"""From texts to configs that can be trained: a tokenizer, an .h5 and a config for each, in the folder of the project.

    <state_save_loc>/<project>/tokenizer/<text>/   data/<text>.h5   <text>.json

What is there is used as it is, so that the same command goes on, and a config that was edited is trained as it says.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modules.config import Config, load_config, parse_config
from modules.data.token_file import TokenFile, open_tokens
from modules.measurement.plan import FEWEST_SEEDS, Budget, Plan, choose, vocabulary_for
from modules.models.evaluate import held_out_losses
from modules.system.console import tell
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.names import as_file_systems_see, check_name, distinct
from modules.system.processes import available_cores
from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
from modules.tok_utils.readers import Reading, kind_and_compression, text_name
from modules.tok_utils.text_source import find_texts, fingerprint
from modules.tokenizer import get_tokenizer
from modules.training.dry_run import duration, seconds_a_step
from modules.training.loop import Training
from modules.training.parallel import Processes
from modules.training.run import data_of
from modules.training.run import prepare as training_of

UNPACKED = {"parquet": 3, "compressed": 4}  # bytes of text in a byte of such a file, for the choice of a vocabulary
# A run's seconds beside its steps: to start, and, on a GPU, to compile.
START_SECONDS = {"cpu": 5.0, "cuda": 60.0}
SLOWER = 1.15  # a step of runs side by side, and of one that logs and saves, than a step alone
EVALUATIONS = 6  # of the held-out text: at four checkpoints, for the report, and in shorter windows
TIMED_WINDOW_TOKENS = 1 << 16


@dataclass(frozen=True)
class Tokenization:
    """How texts become tokens. tokenizer_path: one that is there, instead of a new one; the others as
    `create_tokenizer` has them, a vocab_size of None by the size of the text."""

    tokenizer_path: str | None = None
    vocab_size: int | None = None
    split: str = "symmetric"
    symbols: str | None = None
    reading: Reading = Reading()


@dataclass(frozen=True)
class Prepared:
    """A text as tokens."""

    name: str
    tokenizer: Path
    token_file: TokenFile


def prepared_texts(paths: Sequence[str], folder: Path, wanted: Tokenization) -> list[Prepared]:
    """The texts, tokenized in the project's `folder` as far as they are not. Raises UserError where a path is no text,
    or is not any more the text that was tokenized here."""
    files = {path: find_texts(path) for path in paths}
    names = distinct(map(name_of, files), as_file_systems_see)
    size = min(sum(map(bytes_of_text, texts)) for texts in files.values())
    whole = wanted.symbols not in (None, "words")  # symbols that are few are all taken
    vocab_size = wanted.vocab_size or vocabulary_for(math.inf if whole else size)
    return [
        prepared_text(path, check_name(name, "the text's name"), folder, wanted, vocab_size)
        for path, name in zip(files, names, strict=True)
    ]


def name_of(path: str) -> str:
    """What a text is called: its folder's or its file's name, without what says how it is stored."""
    return Path(path).resolve().name if Path(path).is_dir() else text_name(Path(path))


def bytes_of_text(path: Path) -> int:
    """About how much text a file holds."""
    kind, compression = kind_and_compression(path.name)
    return path.stat().st_size * UNPACKED.get("compressed" if compression else kind, 1)


def prepared_text(path: str, name: str, folder: Path, wanted: Tokenization, vocab_size: int) -> Prepared:
    tokenizer = Path(wanted.tokenizer_path) if wanted.tokenizer_path else folder / "tokenizer" / name
    made = folder / "data" / f"{name}.h5"
    if made.exists():
        token_file = open_tokens(made)
        if [fingerprint(text) for text in find_texts(path)] != [text.fingerprint for text in token_file.texts] or (
            token_file.reading != wanted.reading.identity
        ):
            raise UserError(
                f"{made}: expected it to be made of {path} as it is now, found another text, or one that was read "
                f"otherwise; measure under another name with -p, or move {folder} away"
            )
        token_file.check_tokenizer(get_tokenizer(tokenizer))
        return Prepared(name, tokenizer, token_file)
    if not wanted.tokenizer_path:
        split = "gpt2" if wanted.symbols else wanted.split
        create_tokenizer(
            path, folder / "tokenizer", name, vocab_size, split=split, symbols=wanted.symbols, reading=wanted.reading
        )
    chunks = tokenize_folder(
        path, tokenizer, out_h5_folder=made.parent, reading=wanted.reading, chunks_folder=made.parent / f"{name}_tokens"
    )
    made = make_h5(chunks, made.parent, get_tokenizer(tokenizer), txt_folder=find_texts(path)[0].parent)
    shutil.rmtree(chunks, ignore_errors=True)  # no longer needed
    return Prepared(name, tokenizer, open_tokens(made))


def written_configs(texts: Sequence[Prepared], folder: Path, budget: Budget, device: torch.device) -> list[Path]:
    """The configs of these texts: those that are there, and for the others what `plan.choose` says; or, where some are
    there, what these say, so that all are alike. What will be done is told."""
    paths = [folder / f"{text.name}.json" for text in texts]
    there = [path for path in paths if path.exists()]
    if there:
        tell(f"{', '.join(map(str, there))}: there already, used as written", sys.stderr)
        data = load_config(there[0]).to_dict()
    else:
        data = chosen(texts, folder, budget, device).config("", "", str(folder.parent))
    for text, path in zip(texts, paths, strict=True):
        if not path.exists():
            write_config(path, data, text)
    return paths


def write_config(path: Path, data: dict, text: Prepared) -> None:
    """A config like `data`, on this text."""
    data = data | {
        "model_params": data["model_params"] | {"vocab_size": text.token_file.vocab_size},
        "training_params": data["training_params"]
        | {"dataset_folder": text.token_file.path, "tokenizer_path": str(text.tokenizer)},
    }
    parse_config(data, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")


def chosen(texts: Sequence[Prepared], folder: Path, budget: Budget, device: torch.device) -> Plan:
    """The plan for these texts, told in a line each for the text, a run and all of them."""
    shortest = min(texts, key=lambda text: len(text.token_file.tokens))
    n_tokens = len(shortest.token_file.tokens)
    largest = max(text.token_file.vocab_size or 0 for text in texts)

    def run_seconds(plan: Plan) -> float:
        config = plan.config(shortest.token_file.path, str(shortest.tokenizer), str(folder.parent))
        return seconds_of_run(parse_config(config, shortest.name).with_model("gpt"), device, budget.jobs)

    try:
        plan, seeds, seconds = choose(n_tokens, largest, budget, run_seconds)
    except UserError as error:
        raise UserError(f"{shortest.name}: {error}") from None
    for line in in_lines(texts, n_tokens, plan, budget, seeds, seconds):
        tell(line, sys.stderr)
    return plan


def in_lines(
    texts: Sequence[Prepared], n_tokens: int, plan: Plan, budget: Budget, seeds: int, seconds: float
) -> list[str]:
    """What will be done, and how wide the interval will probably be."""
    size = plan.size
    of_text = f"{texts[0].name}: {n_tokens:,} tokens" if len(texts) == 1 else f"{len(texts)} texts of {n_tokens:,}"
    shorter = "" if len(texts) == 1 else " tokens or more"
    passes = plan.tokens / (n_tokens - plan.held_out_tokens)
    half_width = plan.noise(max(seeds, FEWEST_SEEDS)).half_width
    wanted = budget.wanted(plan)
    more = f" of {wanted}, which is what the time allows," if seeds < wanted else ""
    return [
        f"{of_text}{shorter}, {plan.vocab_size:,} ids; the last {plan.held_out_tokens:,} tokens are held out",
        f"each run: a GPT of {size.n_layers} layer(s) of width {size.embed_dim}, context {size.context}, "
        f"{plan.parameters:,} parameters; {plan.steps:,} steps of {plan.batch_size} windows, {passes:.1f} passes over "
        f"the text; {duration(seconds)}, as measured",
        f"{seeds} seed(s){more} x {budget.runs_a_seed} runs, {budget.jobs} side by side: about "
        f"{duration(budget.seconds_of(seeds, seconds))} of {duration(budget.seconds)}; the interval will probably "
        f"reach ±{half_width:.2f} % (s.d. over seeds {plan.seed_sd:.2f}, s.e. of the held-out "
        f"text {plan.text_se:.2f})",
    ]


# How long a run takes
# -------------------------------------------------------------------------------------------------------------------


def seconds_of_run(config: Config, device: torch.device, jobs: int) -> float:
    """How long the run of this config will take beside others, by a few real steps and some held-out windows; infinite
    where the device has not the memory."""
    threads, training = torch.get_num_threads(), None
    torch.set_num_threads(max(1, available_cores() // jobs))
    try:
        alone = Processes(0, 1, device)
        # uncompiled, which would take longer than all of the measurement
        training = training_of(config.with_training(compile=False), data_of(config, None, alone), alone)
        step = seconds_a_step(training)
        return (
            START_SECONDS.get(device.type, START_SECONDS["cpu"])
            + SLOWER * step * (config.training_params.steps_to_train or 0)
            + EVALUATIONS * evaluation_seconds(training)
        )
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        torch.set_num_threads(threads)
        del training
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the runs are other processes


def evaluation_seconds(training: Training) -> float:
    """How long the held-out text takes once, by a part of it."""
    windows, config = training.held_out, training.config
    some = np.arange(min(len(windows), max(1, TIMED_WINDOW_TOKENS // windows.length)))
    start = time.perf_counter()
    held_out_losses(
        training.model, windows, config.valid_batch_size, training.processes.device, indices=some, progress=False
    )
    return (time.perf_counter() - start) * len(windows) / len(some)
