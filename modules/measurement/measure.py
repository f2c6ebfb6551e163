"""From trained states, or losses that somebody else measured, to a report."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from modules.data.token_file import TokenFile, open_tokens
from modules.data.windows import Windows
from modules.measurement import arrow
from modules.measurement.arrow_page import write_arrow_page
from modules.measurement.comparison import (
    Comparison,
    Measurement,
    compare,
    compare_losses,
    contrasts_of,
    marked_for_longer_contexts,
    stacked,
    with_controls,
)
from modules.measurement.evaluation import Evaluation, evaluate, held_out_ids, held_out_windows
from modules.measurement.loss_files import REFERENCE, Losses, read_losses, write_losses
from modules.measurement.pairing import Trained, pair_up, read_run
from modules.measurement.report import checks_in_words, held_out_in_words, write_report
from modules.measurement.token_classes import pieces_of
from modules.system.console import bar, tell
from modules.system.errors import UserError
from modules.system.names import as_file_systems_see, distinct, file_name
from modules.tok_utils.cuts import pieces
from modules.tok_utils.inspection import check_is_text
from modules.tok_utils.text_source import TextSource
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training.devices import keep_freed_memory

HELD_OUT_PAGE_TOKENS = 3_000  # some eight pages of print
TEXT_PAGE_TOKENS = 100_000  # of a text that was asked for; a browser is slow with much more
TEXT_PIECE_BYTES = 1 << 16  # read and encoded at a time


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


def measured_states(
    paths: Sequence[str | Path], device: torch.device, wish: Wish, data: Sequence[str] = ()
) -> list[Measurement]:
    """Evaluate and compare the runs whose states these are. `data`: where datasets lie that were moved.

    Raises UserError where no comparison would be fair, or where the data or the tokenizer is not the one that the runs
    were trained on.
    """
    keep_freed_memory(device)
    opened = functools.cache(open_tokens)  # once for all runs: it is compared with its checksum
    groups = pair_up([read_run(Path(path), [opened(path) for path in data]) for path in paths])
    toki = get_tokenizer(wish.tokenizer_path) if wish.tokenizer_path else None
    evaluated = [
        evaluate_pairs(pairs, device, toki, list(wish.texts.values()), opened)
        for pairs in bar(groups, desc="evaluating", unit="comparison", disable=len(groups) == 1)
    ]
    block_tokens = arrow.shared_block([arrow.measure(*stacked(pairs)) for pairs, *_ in evaluated])
    measurements = [compare(*each, block_tokens if len(evaluated) > 1 else None) for each in evaluated]
    names = distinct(each.comparison.name for each in measurements)
    return with_controls(
        [
            replace(each, comparison=replace(each.comparison, name=name))
            for each, name in zip(measurements, names, strict=True)
        ]
    )


def evaluate_pairs(
    pairs: Sequence[tuple[Trained, Trained]],
    device: torch.device,
    toki: Tokenizer | None = None,
    texts: Sequence[np.ndarray] = (),
    opened: Callable[[str], TokenFile] = open_tokens,
) -> tuple[list[tuple[Evaluation, Evaluation]], Windows, Tokenizer | None]:
    """What `compare` takes: evaluations of pairs (forward, backward) that differ in their seed only, their held-out
    windows, and the tokenizer if it is theirs. With one that tells the bytes of its tokens the first held-out tokens,
    for their page, and `texts` are evaluated too."""
    windows = held_out_windows(pairs[0][0], opened)
    if windows.token_file.reversed_of is not None:
        toki = None  # a control has a tokenizer of its own
    if toki is not None:
        windows.token_file.check_tokenizer(toki)
    shown = [first_held_out(windows), *texts] if toki is not None and pieces_of(toki) is not None else []

    def evaluated(run: Trained, is_first: bool) -> Evaluation:
        return evaluate(run, held_out_windows(run, opened), device, shown, toki if is_first else None)

    evaluations = [
        (evaluated(forward, number == 0), evaluated(backward, number == 0))
        for number, (forward, backward) in enumerate(pairs)
    ]
    return evaluations, windows, toki


def first_held_out(windows: Windows) -> np.ndarray:
    """The held-out text that is shown: the ids [n] of its first tokens."""
    return held_out_ids(windows).ravel()[:HELD_OUT_PAGE_TOKENS]


def report_on(measurements: Sequence[Measurement], wish: Wish) -> str:
    """Write the report of what was measured, and return what to tell the user."""
    out = wish.out or measurements[0].pairs[0][0].run.path.parent.parent / "report"
    comparisons = marked_for_longer_contexts([each.comparison for each in measurements])
    written = write_report(out, comparisons, wish.command, contrasts_of(measurements))
    if wish.save_losses:
        written |= write_losses(
            out,
            {
                each.comparison.name: Losses(each.losses, each.documents, each.document_of_tokens)
                for each in measurements
            },
        )
    suffixes = ["", *(f"-{text.stem}" for text in wish.texts)]
    pages = [(comparison.name, suffix) for comparison in comparisons for suffix in suffixes]
    stem_of = dict(zip(pages, distinct(map("".join, pages), as_file_systems_see), strict=True))
    token_bytes = pieces_of(get_tokenizer(wish.tokenizer_path)) if wish.tokenizer_path else None
    told = []
    for each, comparison in zip(measurements, comparisons, strict=True):
        told.append(in_words(comparison))
        first = each.pairs[0] if each.pairs else ()
        told += [f"{one.run.direction} snippet: {one.snippet!r}" for one in first if one.snippet is not None]
        if first and first[0].texts:
            assert each.windows is not None and token_bytes is not None  # or there would be no texts
            shown = [("held-out text", first_held_out(each.windows)), *wish.texts.items()]
            for number, (suffix, (what, ids)) in enumerate(zip(suffixes, shown, strict=True)):
                forward, backward = (
                    np.mean([one.texts[number] for one in of_seeds], axis=0)
                    for of_seeds in zip(*each.pairs, strict=True)
                )
                page = write_arrow_page(
                    out / file_name(stem_of[comparison.name, suffix], "-page.html"),
                    token_bytes,
                    ids,
                    forward,
                    backward,
                    title=f"Where the arrow lives: {comparison.name}, {what}",
                )
                told.append(f"coloured {what}: {page}")
        if (picture := written.get(f"{comparison.name}-loss")) is not None:
            told.append(f"loss curves: {picture}")
    told += [f"losses: {written['npz']}"] if wish.save_losses else []
    return "\n".join([*told, f"report: {written['report']}"])


def report_on_losses(path: str, wish: Wish) -> str:
    """The report on losses that somebody else measured (loss_files.py), and what to tell the user of it."""
    given = [
        (
            (name or Path(path).stem) + ("" if order == "backward" else f", {order}"),
            order,
            losses.by_order[REFERENCE],
            array,
            losses.documents,
            Path(path).stem,
        )
        for name, losses in read_losses(path).items()
        for order, array in losses.by_order.items()
        if order != REFERENCE
    ]
    block_tokens = arrow.shared_block([arrow.measure(forward, other) for _, _, forward, other, _, _ in given])
    measurements = [compare_losses(*each, block_tokens if len(given) > 1 else None) for each in given]
    out = wish.out or Path(path).with_suffix("").with_name(f"{Path(path).stem}-report")
    return report_on(measurements, replace(wish, out=out))


def in_words(comparison: Comparison) -> str:
    """The result in a few lines."""
    losses, nats, percent = comparison.losses, comparison.arrow.nats, comparison.arrow.percent
    low, high = percent.both
    lines = [
        f"{comparison.name}: {held_out_in_words(comparison)}, {len(comparison.compared.seeds)} seed(s)",
        f"forward {losses['forward'].nats_per_token:.4f}, {comparison.order} {losses['backward'].nats_per_token:.4f} "
        "nats/token",
        f"arrow {nats.value:+.4f} nats/token, {percent.value:+.2f} %, standard error {percent.se:.2f}, "
        f"95 % interval {low:+.2f} to {high:+.2f} %",
        comparison.arrow.verdict,
        *checks_in_words(comparison),
    ]
    return "\n  ".join(lines)


def read_texts(paths: Sequence[str], tokenizer_path: str) -> dict[Path, np.ndarray]:
    """The ids of text files, compressed or not, the first TEXT_PAGE_TOKENS of each; no more of a text is read than
    these need.

    UserError where one is empty or no text in UTF-8, or two have one name.
    """
    if len({Path(path).stem for path in paths}) < len(paths):
        raise UserError(f"{', '.join(paths)}: two texts of one name would be one page; rename one")
    toki, texts = get_tokenizer(tokenizer_path), {}
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
