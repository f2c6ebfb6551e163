"""From trained states, or losses that somebody else measured, to a report."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from modules.config import Config
from modules.data.orders import BACKWARD, FORWARD
from modules.data.token_file import TokenFile, open_tokens
from modules.data.windows import Windows
from modules.measurement import arrow
from modules.measurement.arrow_page import write_arrow_page
from modules.measurement.comparison import Comparison, Measurement, called, compare, compare_losses, stacked
from modules.measurement.evaluation import Evaluation, held_out_ids, held_out_windows
from modules.measurement.halves import with_controls
from modules.measurement.held_out import HeldOutText, held_out_text
from modules.measurement.kept_evaluations import evaluate_once
from modules.measurement.loss_files import Losses, read_losses, write_losses
from modules.measurement.pairing import Trained, differences, pair_up, read_run
from modules.measurement.report import checks_in_words, held_out_in_words, write_report
from modules.measurement.sweep import contrasts_of, marked_for_longer_contexts
from modules.measurement.token_classes import pieces_of
from modules.system.console import bar, tell
from modules.system.errors import UserError
from modules.system.names import as_file_systems_see, distinct, file_name
from modules.tok_utils.cuts import encoded
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
    tokens and coloured pages; without it the one that a config names, where it is there. command: how it was asked for.
    texts: from `read_texts`, each to be coloured.
    save_losses: write losses.npz and losses.csv too. reference: the order to which others are compared.
    """

    out: Path | None = None
    tokenizer_path: str | None = None
    command: str | None = None
    texts: Mapping[Path, np.ndarray] = field(default_factory=dict)
    save_losses: bool = False
    reference: str = FORWARD


def measured_states(
    paths: Sequence[str | Path],
    device: torch.device,
    wish: Wish,
    data: Sequence[str] = (),
    known: dict[Path, list[Evaluation]] | None = None,
) -> list[Measurement]:
    """Evaluate and compare the runs whose states these are. `data`: where datasets lie that were moved. known: the
    states that are evaluated already; these are added.

    Raises UserError where no comparison would be fair, or where the data or the tokenizer is not the one that the runs
    were trained on.
    """
    keep_freed_memory(device)
    opened = functools.cache(open_tokens)  # once for all runs: it is compared with its checksum
    groups = pair_up([read_run(Path(path), [opened(path) for path in data]) for path in paths], wish.reference)
    report, known = wish.out or usual_report(groups[0][0][0]), {} if known is None else known
    evaluated = [
        evaluate_pairs(
            pairs, device, report, tokenizer_of(pairs[0][0].config, wish), list(wish.texts.values()), opened, known
        )
        for pairs in bar(groups, desc="evaluating", unit="comparison", disable=len(groups) == 1)
    ]
    block_tokens = arrow.shared_block(
        [arrow.measure(*stacked(pairs)) for pairs, text, _ in evaluated if not text.folds]
    )
    measurements = [compare(*each, block_tokens if len(evaluated) > 1 else None) for each in evaluated]
    return with_controls(with_configs_told_apart(measurements))


def usual_report(first: Trained) -> Path:
    """Where a report that begins with this run goes, unless the user says another place."""
    return first.path.parent.parent / "report"


def tokenizer_of(config: Config, wish: Wish) -> Tokenizer | None:
    """The tokenizer that the user gave, or that the config names, where it is there."""
    if wish.tokenizer_path:
        return get_tokenizer(wish.tokenizer_path)
    named = config.tokenizer_path
    return get_tokenizer(named) if named and Path(named).is_dir() else None


def with_configs_told_apart(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The same, configs that differ but have one name with a number behind it."""
    configs: list[list[Measurement]] = []
    for each in measurements:
        run = each.pairs[0][0].run
        alike = (
            of_one for of_one in configs if not differences(of_one[0].pairs[0][0].run, run, ["training_params.seed"])
        )
        if (of_one := next(alike, None)) is None:
            configs.append(of_one := [])
        of_one.append(each)
    name_of = {}
    for of_one, config in zip(configs, distinct(of_one[0].comparison.config for of_one in configs), strict=True):
        name_of |= {id(each): config for each in of_one}
    return [
        replace(
            each,
            comparison=replace(
                each.comparison, config=name_of[id(each)], name=called(name_of[id(each)], *each.comparison.which)
            ),
        )
        for each in measurements
    ]


def evaluate_pairs(
    pairs: Sequence[tuple[Trained, Trained]],
    device: torch.device,
    report: Path,
    toki: Tokenizer | None = None,
    texts: Sequence[np.ndarray] = (),
    opened: Callable[[str], TokenFile] = open_tokens,
    known: dict[Path, list[Evaluation]] | None = None,
) -> tuple[list[tuple[Evaluation, Evaluation]], HeldOutText, Tokenizer | None]:
    """What `compare` takes: evaluations of pairs (reference, order) that differ in their seed only, their held-out
    text, and the tokenizer if it is theirs. With one that tells the bytes of its tokens the first held-out tokens,
    for their page, and `texts` are evaluated too. report: whose folder keeps the evaluations. known: the states that
    are evaluated already, each in its orders; those of these pairs are added."""
    known = {} if known is None else known
    windows = [held_out_windows(reference, opened) for reference, _ in pairs]
    text = held_out_text(windows, [reference.seed for reference, _ in pairs])
    if text.token_file.reversed_of is not None:
        toki = None  # a control has a tokenizer of its own
    if toki is not None:
        text.token_file.check_tokenizer(toki)
    shown = toki is not None and pieces_of(toki) is not None
    for number, (pair, of_pair) in enumerate(zip(pairs, windows, strict=True)):
        for run in pair:
            if run.path not in known:
                of_run, snippets = held_out_windows(run, opened), toki if number == 0 else None
                pages = [first_held_out(of_pair), *texts] if shown else []
                known[run.path] = evaluate_once(run, of_run, device, pages, snippets, report)
    evaluations = [(known[one.path][one.number], known[other.path][other.number]) for one, other in pairs]
    return evaluations, text, toki


def first_held_out(windows: Windows) -> np.ndarray:
    """The held-out text that is shown: the ids [n] of its first tokens, a window or more."""
    return held_out_ids(windows).ravel()[: max(HELD_OUT_PAGE_TOKENS, windows.length)]


def report_on(measurements: Sequence[Measurement], wish: Wish) -> str:
    """Write the report of what was measured, and return what to tell the user."""
    out = wish.out or usual_report(measurements[0].pairs[0][0].run)
    comparisons = marked_for_longer_contexts([each.comparison for each in measurements])
    written = write_report(out, comparisons, wish.command, contrasts_of(measurements))
    if wish.save_losses:
        written |= write_losses(out, losses_by_config(measurements))
    suffixes = ["", *(f"-{text.stem}" for text in wish.texts)]
    pages = [(comparison.name, suffix) for comparison in comparisons for suffix in suffixes]
    stem_of = dict(zip(pages, distinct(map("".join, pages), as_file_systems_see), strict=True))
    told = []
    for each, comparison in zip(measurements, comparisons, strict=True):
        told.append(in_words(comparison))
        first = each.pairs[0] if each.pairs else ()
        told += [f"{one.run.order} snippet: {one.snippet!r}" for one in first if one.snippet is not None]
        if first and first[0].texts:
            toki = tokenizer_of(first[0].run.config, wish)
            token_bytes = pieces_of(toki) if toki else None
            assert each.held_out is not None and token_bytes is not None  # or there would be no texts
            shown = [("held-out text", first_held_out(each.held_out.windows[0])), *wish.texts.items()]
            for number, (suffix, (what, ids)) in enumerate(zip(suffixes, shown, strict=True)):
                have_it = each.pairs[:1] if number == 0 and each.folds else each.pairs
                forward, backward = (
                    np.mean([one.texts[number] for one in of_seeds], axis=0) for of_seeds in zip(*have_it, strict=True)
                )
                page = write_arrow_page(
                    out / file_name(stem_of[comparison.name, suffix], "-page.html"),
                    token_bytes,
                    ids,
                    forward,
                    backward,
                    title=f"Where the arrow lives: {comparison.name}, {what}",
                    orders=(comparison.reference, comparison.order),
                )
                told.append(f"coloured {what}: {page}")
        for what, kind in (("loss curves", "loss"), ("orders of reading", "orders")):
            if (picture := written.pop(f"{comparison.config}-{kind}", None)) is not None:  # once for all orders
                told.append(f"{what}: {picture}")
    told += [f"losses: {written['npz']}"] if wish.save_losses else []
    return "\n".join([*told, f"report: {written['report']}"])


def losses_by_config(measurements: Sequence[Measurement]) -> dict[str, Losses]:
    """The losses of all orders of a config under its name. Those of one model, and of orders that have other seeds, are
    under the name of their comparison."""
    found, seeds = {}, {}
    for each in measurements:
        comparison = each.comparison
        name = comparison.config
        if comparison.in_one_model or seeds.setdefault(name, comparison.compared.seeds) != comparison.compared.seeds:
            name = comparison.name
        folds = np.array(each.held_out.firsts) if each.held_out and each.folds else None
        losses = found.setdefault(name, Losses({}, each.documents, each.document_of_tokens, folds))
        losses.by_order.update(each.losses)
    return found


def report_on_losses(path: str, wish: Wish) -> str:
    """The report on losses that somebody else measured (loss_files.py), and what to tell the user of it."""
    given = [
        (name or Path(path).stem, order, losses.by_order[wish.reference], array, losses, Path(path).stem)
        for name, losses in read_losses(path, wish.reference).items()
        for order, array in losses.by_order.items()
        if order != wish.reference
    ]
    one_text = [(one, other) for _, _, one, other, losses, _ in given if losses.folds is None]
    block_tokens = arrow.shared_block([arrow.measure(*each) for each in one_text])
    shared = block_tokens if len(given) > 1 else None
    measurements = [
        compare_losses(
            name, order, one, other, losses.documents, text, shared, wish.reference, losses.folds is not None
        )
        for name, order, one, other, losses, text in given
    ]
    out = wish.out or Path(path).with_suffix("").with_name(f"{Path(path).stem}-report")
    return report_on(measurements, replace(wish, out=out))


def in_words(comparison: Comparison) -> str:
    """The result in a few lines."""
    losses, nats, percent = comparison.losses, comparison.arrow.nats, comparison.arrow.percent
    low, high = percent.both
    lines = [
        f"{comparison.name}: {held_out_in_words(comparison)}, {len(comparison.compared.seeds)} seed(s)",
        ", ".join(f"{order} {loss.nats_per_token:.4f}" for order, loss in losses.items()) + " nats/token",
        f"{'arrow' if comparison.order == BACKWARD else 'difference'} {nats.value:+.4f} nats/token, "
        f"{percent.value:+.2f} %, standard error {percent.se:.2f}, "
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
        ids = []
        with TextSource(path) as source:
            for of_piece, reached in encoded(source, TEXT_PIECE_BYTES, toki, path):
                ids += of_piece
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
