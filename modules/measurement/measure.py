"""The whole measurement: train what is missing, compare, write the report.

A measurement of a config is 2 x seeds runs, each an ordinary run with its own config file, state and metrics: it can be
watched, stopped and gone on with like any other, and what is finished is used as it is. The derived configs are written
beside the states (`<state_save_loc>/<project>/configs/`), so that each run can be repeated by itself.

They are trained one after the other, or several at a time (side_by_side.py).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from modules.config import Config, GPTParams, load_config
from modules.data.token_file import open_tokens
from modules.measurement.arrow_page import write_arrow_page
from modules.measurement.comparison import (
    Compared,
    Trained,
    base_name,
    compare,
    compare_losses,
    contrasts_of,
    held_out_ids,
    held_out_windows,
    load_model,
    pair_up,
    read_run,
    with_controls,
)
from modules.measurement.control import control_of, control_run, why_none
from modules.measurement.loss_files import REFERENCE, read_losses, write_losses
from modules.measurement.noise import next_seeds
from modules.measurement.report import checks_in_words, held_out_in_words, marked_for_longer_contexts, write_report
from modules.measurement.text_losses import text_losses
from modules.measurement.token_classes import pieces_of
from modules.models import evaluate
from modules.system.console import bar, tell
from modules.system.errors import UserError
from modules.system.names import as_file_systems_see, distinct, file_name
from modules.tok_utils.cuts import pieces
from modules.tok_utils.inspection import check_is_text
from modules.tok_utils.text_source import TextSource
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training.devices import keep_freed_memory
from modules.training.parallel import joined
from modules.training.recording import SNIPPET_TOKENS
from modules.training.resume import files_of
from modules.training.run import Request, run

HELD_OUT_PAGE_TOKENS = 3_000  # some eight pages of print
TEXT_PAGE_TOKENS = 100_000  # of a text that was asked for; a browser is slow with much more
TEXT_PIECE_BYTES = 1 << 16  # read and encoded at a time


# Which runs
# -------------------------------------------------------------------------------------------------------------


def planned_runs(config_paths: Sequence[str], seeds: int) -> list[Config]:
    """The runs that the measurement of these configs consists of: both directions for `seeds` seeds of each.

    The direction and the name's "_forward" or "_backward" of a config are left out: both files of a pair are one
    measurement. Seeds count up from the config's own. Raises UserError where two configs of one name differ.
    """
    runs = {}
    configs = [(path, with_known_model(load_config(path), path)) for path in config_paths]
    for path, config in configs:
        if config.order not in ("forward", "backward"):
            raise UserError(f"{path}: training_params.order: expected forward or backward, found {config.order}")
    for number in range(seeds):  # outermost: all of a sweep is there, with few seeds, before any of it has many
        for path, config in configs:
            seed = config.training_params.seed + number
            for direction in ("forward", "backward"):
                name = f"{base_name(config.name)}_{direction}_seed{seed}"
                one = config.with_training(backwards=direction == "backward", seed=seed).with_name(name)
                if runs.setdefault(name, one) != one:
                    raise UserError(f"{path}: another config given here has the same name but differs; rename one")
    return list(runs.values())


def with_controls_of(runs: Sequence[Config], project: str, wanted: bool | None) -> list[Config]:
    """The runs, each followed by the same on its reversed control, which is made where it is not there.

    wanted: True refuses data that can have none, None leaves their control out and says so, False leaves all out.
    """
    if wanted is False:
        return list(runs)
    planned, data = [], {}  # the path of the control by that of the data, None where there is none
    for each in runs:
        if each.dataset_path not in data:
            token_file = open_tokens(each.dataset_path)
            reason = why_none(token_file)
            if reason is not None and wanted and not token_file.symmetric:
                raise UserError(f"{each.dataset_path}: has no control to train: {reason}")
            if reason is not None:
                tell(f"{each.dataset_path}: no control is trained: {reason}", sys.stderr)
            data[each.dataset_path] = (
                None if reason else control_of(token_file, files_of(each, project).folder / "control")
            )
        control = data[each.dataset_path]
        planned += [each] if control is None else [each, control_run(each, control)]
    return planned


def seeds_after(compared: Sequence[Compared], half_width: float, most: int) -> int:
    """How many seeds to have before it is looked again whether the intervals reach `half_width` percent to either side;
    the present number to stop."""
    texts = [each for each in compared if each.token_file.reversed_of is None]
    return max(next_seeds(each.estimate.noise, half_width, most) for each in texts)


def with_known_model(config: Config, path: str) -> Config:
    """The config with its kind of model written down. A recurrent one has to say which it is: no script does here."""
    if config.model is None and not isinstance(config.model_params, GPTParams):
        raise UserError(
            f'{path}: "model": expected "gru" or "lstm", found none; model_params alone do not tell them apart'
        )
    return config.with_model(config.model or "gpt")


# Training
# ---------------------------------------------------------------------------------------------------------------


def train_in_turn(runs: Sequence[Config], request: Request, device_name: str | None) -> tuple[int, bool]:
    """Train each run, one after the other, on all processes of torchrun where it launched this.

    Returns the exit status of the first that a signal ended early, else 0, and whether this process is the one to
    report.
    """
    with joined(device_name) as processes:
        status = next((status for config in runs if (status := run(config, request, processes))), 0)
        return status, processes.is_main


# Comparing
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a user wants of a report beside the comparisons.

    out: its folder; by default `report/` beside the folder of the states. tokenizer_path: for snippets, classes of
    tokens and coloured pages. command: how it was asked for. texts: from `read_texts`, each to be coloured.
    save_losses: write losses.npz and losses.csv too.
    """

    out: Path | None = None
    tokenizer_path: str | None = None
    command: str | None = None
    texts: Mapping[Path, np.ndarray] = field(default_factory=dict)
    save_losses: bool = False


def compared_states(
    paths: Sequence[str | Path], device: torch.device, tokenizer_path: str | None, data: Sequence[str] = ()
) -> list[Compared]:
    """Compare the runs whose states these are. `data`: where datasets lie that were moved. UserError where no
    comparison would be fair."""
    keep_freed_memory(device)
    moved = [open_tokens(path) for path in data]
    groups = pair_up([read_run(Path(path), moved) for path in paths])
    toki = get_tokenizer(tokenizer_path) if tokenizer_path else None
    compared = []
    for pairs in bar(groups, desc="evaluating", unit="comparison", disable=len(groups) == 1):
        is_control = toki is not None and open_tokens(pairs[0][0].data_path).reversed_of is not None
        compared.append(compare(pairs, device, None if is_control else toki))  # a control has a tokenizer of its own
    names = distinct(each.comparison["name"] for each in compared)
    return with_controls(
        [replace(each, comparison=each.comparison | {"name": name}) for each, name in zip(compared, names, strict=True)]
    )


def report_on(compared: Sequence[Compared], device: torch.device, wish: Wish) -> str:
    """Write the report of what was compared, and return what to tell the user."""
    out = wish.out or compared[0].pairs[0][0].path.parent.parent / "report"
    toki = get_tokenizer(wish.tokenizer_path) if wish.tokenizer_path else None
    contrasts = contrasts_of(compared)
    comparisons = marked_for_longer_contexts([each.comparison for each in compared])
    written = write_report(out, comparisons, wish.command, contrasts)
    if wish.save_losses:
        written |= write_losses(out, {each.comparison["name"]: each.losses for each in compared})
    suffixes = ["", *(f"-{text.stem}" for text in wish.texts)]
    pages = [(comparison["name"], suffix) for comparison in comparisons for suffix in suffixes]
    stem_of = dict(zip(pages, distinct(map("".join, pages), as_file_systems_see), strict=True))
    told = []
    for each, comparison in zip(compared, comparisons, strict=True):
        told.append(in_words(comparison))
        is_text = toki is not None and each.token_file is not None and each.token_file.reversed_of is None
        if is_text:
            told += [f"{trained.direction} snippet: {snippet(trained, toki, device)!r}" for trained in each.pairs[0]]
        if is_text and (token_bytes := pieces_of(toki)) is not None:
            held_out = held_out_ids(held_out_windows(each.pairs[0][0])).ravel()[:HELD_OUT_PAGE_TOKENS]
            shown = [("held-out text", held_out), *((str(text), ids) for text, ids in wish.texts.items())]
            losses = losses_of_texts([ids for *_, ids in shown], each.pairs, toki.bos_id, device)
            for suffix, (what, ids), (forward, backward) in zip(suffixes, shown, losses, strict=True):
                page = write_arrow_page(
                    out / file_name(stem_of[comparison["name"], suffix], "-page.html"),
                    token_bytes,
                    ids,
                    forward,
                    backward,
                    title=f"Where the arrow lives: {comparison['name']}, {what}",
                )
                told.append(f"coloured {what}: {page}")
        if (picture := written.get(f"{comparison['name']}-loss")) is not None:
            told.append(f"loss curves: {picture}")
    told += [f"losses: {written['npz']}"] if wish.save_losses else []
    return "\n".join([*told, f"report: {written['report']}"])


def report_on_losses(path: str, wish: Wish) -> str:
    """The report on losses that somebody else measured (loss_files.py), and what to tell the user of it."""
    compared = []
    for name, losses in read_losses(path).items():
        for order, array in losses.by_order.items():
            if order != REFERENCE:
                named = (name or Path(path).stem) + ("" if order == "backward" else f", {order}")
                compared.append(
                    compare_losses(named, order, losses.by_order[REFERENCE], array, losses.documents, Path(path).stem)
                )
    return report_on(
        compared,
        torch.device("cpu"),
        replace(wish, out=wish.out or Path(path).with_suffix("").with_name(f"{Path(path).stem}-report")),
    )


def in_words(comparison: dict) -> str:
    """The result in a few lines."""
    losses, nats, percent = comparison["losses"], comparison["arrow"]["nats"], comparison["arrow"]["percent"]
    low, high = percent["both"]
    lines = [
        f"{comparison['name']}: {held_out_in_words(comparison)}, {len(comparison['compared']['seeds'])} seed(s)",
        f"forward {losses['forward']['nats_per_token']:.4f}, {comparison['order']} {losses['backward']['nats_per_token']:.4f} nats/token",
        f"arrow {nats['value']:+.4f} nats/token, {percent['value']:+.2f} %, standard error {percent['se']:.2f}, 95 % interval {low:+.2f} to {high:+.2f} %",
        comparison["arrow"]["verdict"],
        *checks_in_words(comparison),
    ]
    return "\n  ".join(lines)


def snippet(trained: Trained, toki: Tokenizer, device: torch.device) -> str:
    """A text that the model makes up, in the order in which people read."""
    n_tokens = min(
        SNIPPET_TOKENS, trained.config.model_params.context
    )  # as far as the model has seen texts that begin with BOS
    model, windows = load_model(trained, device), held_out_windows(trained)
    return evaluate.snippet(model, windows, toki, n_tokens, trained.seed, device)


def read_texts(paths: Sequence[str], tokenizer_path: str | None) -> dict[Path, np.ndarray]:
    """The ids of text files, compressed or not, the first TEXT_PAGE_TOKENS of each; no more of a text is read than
    these need.

    UserError where one is empty or no text in UTF-8, or two have one name.
    """
    if len({Path(path).stem for path in paths}) < len(paths):
        raise UserError(f"{', '.join(paths)}: two texts of one name would be one page; rename one")
    toki, texts = get_tokenizer(tokenizer_path) if paths else None, {}
    for path in map(Path, paths):
        check_is_text(path)
        ids, reached = [], 0
        with TextSource(path) as source:
            for piece in pieces(source, TEXT_PIECE_BYTES, toki):
                try:
                    ids += toki.encode(source.read(piece.start, piece.stop).decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}: expected UTF-8 text, found {error.reason} at byte {piece.start + error.start:,}"
                    ) from None
                reached = piece.stop
                if len(ids) > TEXT_PAGE_TOKENS:
                    tell(
                        f"{path}: the page will show its first {TEXT_PAGE_TOKENS:,} tokens, of some {reached:,} bytes",
                        sys.stderr,
                    )
                    break
        if not ids:
            raise UserError(f"{path}: the text is empty")
        texts[path] = np.array(ids[:TEXT_PAGE_TOKENS], dtype=np.int64)
    return texts


def losses_of_texts(
    texts: Sequence[np.ndarray], pairs: Sequence[tuple[Trained, Trained]], bos_id: int, device: torch.device
) -> list[np.ndarray]:
    """Forward and backward losses [2, n] of each of the texts, ids [n]: means over the pairs (the seeds), whose models
    are read once."""
    per_pair = []
    for pair in pairs:
        forward, backward = (load_model(each, device) for each in pair)
        per_pair.append(
            [
                np.stack(text_losses(forward, backward, ids, pair[0].config.model_params.context, bos_id, device))
                for ids in texts
            ]
        )
    return [np.mean(losses, axis=0) for losses in zip(*per_pair, strict=True)]
