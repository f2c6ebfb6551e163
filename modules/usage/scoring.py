"""What models say of a text: the loss of each of its tokens, in each model's order.

A document is read alone, behind BOS; a text that is not divided is one document. One that fits the context is one
window. A longer one is read in windows half a context apart, and each token's loss is taken from the window in which it
is most central (measurement/text_losses.py): forward and backward see the same window of it, mirrored, and away from
the ends a quarter of the context or more. (In the held-out loss of a training windows stand end to end, so some tokens
have less context, and the loss is a little higher.)

Every token counts once, and bits per byte are per UTF-8 byte of the documents, separators left out.
"""

import contextlib
import csv
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from modules.data.orders import BACKWARD, FORWARD, Reading
from modules.data.windows import windows_of_ids
from modules.measurement.evaluation import load_model
from modules.measurement.pairing import Trained, differences
from modules.measurement.text_losses import BATCH, central_windows
from modules.models import LanguageModel
from modules.models.evaluate import held_out_losses
from modules.system.console import bar, one_line, tell, warn_once
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.names import distinct
from modules.tok_utils import readers
from modules.tok_utils.cuts import encoded
from modules.tok_utils.inspection import check_is_text, check_kept
from modules.tok_utils.text_source import PLAIN, TextInMemory, TextSource, find_texts
from modules.tokenizer import Tokenizer

PIECE_BYTES = 1 << 16  # encoded at a time
LISTED = 5  # documents either way
SHOWN_CHARACTERS = 50


@dataclass(frozen=True)
class Document:
    """Its tokens, ids [n], and how many UTF-8 bytes they stand for."""

    ids: np.ndarray
    n_bytes: int


@dataclass(frozen=True)
class Scored:
    """What one model says in one order. label: what it is called among the others. losses: of each document, nats [n],
    in text order."""

    label: str
    run: Trained
    losses: list[np.ndarray]


# Reading
# ----------------------------------------------------------------------------------------------------------------


def read_documents(path: str, toki: Tokenizer, reading: readers.Reading = PLAIN) -> list[Document]:
    """The documents of a text, of all texts in a folder, or of standard input ("-"). UserError where there is none, or
    what is there is no text in UTF-8 or none for this tokenizer."""
    if path != "-":
        return _documents_of(Path(path), toki, reading)
    if sys.stdin is None:
        raise UserError("standard input: expected a text, found it closed")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "text"
        copy.write_bytes(sys.stdin.buffer.read())
        try:
            return _documents_of(copy, toki, reading)
        except UserError as error:
            raise UserError(str(error).replace(str(copy), "standard input")) from None


def _documents_of(path: Path, toki: Tokenizer, reading: readers.Reading) -> list[Document]:
    texts = find_texts(path)
    for text in texts:
        check_is_text(text, reading)
    found = []
    for text in texts:
        of_bytes = {"unit": "B", "unit_scale": True, "delay": 2, "leave": False}
        with TextSource(text, reading) as source, bar(total=source.size, desc="reading", **of_bytes) as read:
            for number, data in enumerate(source.documents(), 1):
                where, ids, before = f"{text}, document {number:,}" if source.has_documents else text, [], 0
                for of_piece, stop in encoded(TextInMemory(data), PIECE_BYTES, toki, where):
                    ids += of_piece
                    read.update(stop - before)
                    before = stop
                found.append(Document(np.array(ids, dtype=np.int64), len(data)))
    check_kept(texts, toki, reading)
    if not any(len(document.ids) for document in found):
        raise UserError(f"{path}: the text is empty: there is no token in it")
    return found


# Losses
# ----------------------------------------------------------------------------------------------------------------


def losses_of(
    model: LanguageModel,
    documents: Sequence[np.ndarray],
    reading: Reading,
    bos_id: int,
    device: torch.device,
    what: str = "scoring",
) -> list[np.ndarray]:
    """The losses of the tokens of each of `documents`, ids [n], in the one order of `reading`: nats [n], in text order.

    UserError where one is shorter than the context and the order a list of the context's positions.
    """
    losses, of_length = [np.zeros(0)] * len(documents), {}
    for number, ids in enumerate(documents):
        if len(ids):
            of_length.setdefault(min(len(ids), model.context), []).append(number)
    if min(of_length, default=model.context) < model.context and not isinstance(reading.orders[0], str):
        raise UserError(
            f"a document of {min(of_length)} tokens: expected at least the context's {model.context}, for which the "
            "order lists positions"
        )
    with bar(total=sum(map(len, documents)), desc=what, unit="token", unit_scale=True, delay=1, leave=False) as done:
        for length, numbers in of_length.items():
            # Documents whose windows have one length lie end to end; no window reaches from one into the next.
            of_these = [documents[number] for number in numbers]
            firsts = np.cumsum([0, *map(len, of_these[:-1])])
            placed = [central_windows(len(ids), model.context) for ids in of_these]
            starts = np.concatenate([first + own for first, (own, _, _) in zip(firsts, placed, strict=True)])
            windows = windows_of_ids(np.concatenate(of_these), length, bos_id, reading)
            size = max(1, BATCH * model.context // length)
            rows_WT = np.empty((len(starts), length))
            for batch in np.array_split(np.arange(len(starts)), -(-len(starts) // size)):
                rows_WT[batch] = held_out_losses(model, windows, size, device, indices=starts[batch], progress=False)
                done.update(len(batch) / len(starts) * sum(map(len, of_these)))
            window = 0
            for number, (own, chosen, offset) in zip(numbers, placed, strict=True):
                losses[number] = rows_WT[window + chosen, offset]
                window += len(own)
    return losses


def labels_of(runs: Sequence[Trained]) -> list[str]:
    """What each run is called: its order where that tells them apart, else the name of its state as well."""
    orders = [run.order for run in runs]
    if len(set(orders)) == len(orders):
        return orders
    names = [run.path.name.removesuffix(".state") for run in runs]
    return list(
        distinct(f"{name} {run.order}" if run.in_one_model else name for name, run in zip(names, runs, strict=True))
    )


def scored(runs: Sequence[Trained], documents: Sequence[np.ndarray], bos_id: int, device: torch.device) -> list[Scored]:
    """What each of `runs` says of the documents; one model after another lies in memory."""
    found, path, model = [], None, None
    for run, label in zip(runs, labels_of(runs), strict=True):
        if model is None or run.path != path:  # a model of several orders is read once
            path, model = run.path, load_model(run, device)
        reading = run.config.reading.one(run.number)
        found.append(Scored(label, run, losses_of(model, documents, reading, bos_id, device, label)))
    return found


def both_directions(runs: Sequence[Trained]) -> tuple[list[int], list[int]] | None:
    """Which of `runs` read forward and which backward; None unless there are some of each. Says where these differ in
    more than their order and seed."""
    forward, backward = ([i for i, run in enumerate(runs) if run.order == order] for order in (FORWARD, BACKWARD))
    if not forward or not backward:
        return None
    one = runs[forward[0]]
    for other in (runs[i] for i in (*forward, *backward)):
        found = differences(one, other, but=["training_params.seed"])
        if one.in_one_model != other.in_one_model:
            found = [f"the number of their orders ({len(one.config.orders)} and {len(other.config.orders)})"]
        if found:
            warn_once(f"no fair comparison of directions: {one.path} and {other.path} differ in {found[0]}")
    return forward, backward


# What is told
# ----------------------------------------------------------------------------------------------------------------


def in_words(what: str, documents: Sequence[Document], all_scored: Sequence[Scored]) -> str:
    """The table of a text: nats per token, bits per byte and perplexity of each model."""
    tokens = sum(len(document.ids) for document in documents)
    n_bytes = sum(document.n_bytes for document in documents)
    divided = f"{len(documents):,} documents, " if len(documents) > 1 else ""
    means = [sum(each.sum() for each in one.losses) / tokens for one in all_scored]
    rows = [["", "context", "nats/token", "bits/byte", "perplexity"]]
    for one, nats in zip(all_scored, means, strict=True):
        bits = nats * tokens / math.log(2) / n_bytes
        context = one.run.config.model_params.context
        rows.append([one.label, f"{context:,}", f"{nats:.4f}", f"{bits:.4f}", perplexity(nats)])
    lines = [f"{one_line(what)}: {divided}{tokens:,} tokens, {n_bytes:,} bytes", *table(rows)]
    if directions := both_directions([one.run for one in all_scored]):
        forward, backward = (np.mean([means[i] for i in numbers]) for numbers in directions)
        lines.append(f"  backward - forward: {backward - forward:+.4f} nats/token, {percent(forward, backward)}")
    return "\n".join(lines)


def perplexity(nats: float) -> str:
    return f"{math.exp(nats):,.2f}" if nats < 700 else "beyond 1e304"


def percent(forward: float, backward: float) -> str:
    return f"{100 * (backward / forward - 1):+.2f} %"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def words_of(ids: np.ndarray, toki: Tokenizer) -> str:
    """How a document begins, in a line."""
    text = " ".join(toki.detokenize(torch.from_numpy(ids[:SHOWN_CHARACTERS])).split())
    return one_line(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "...")


# Files
# ----------------------------------------------------------------------------------------------------------------


def write_tokens(path: Path, documents: Sequence[Document], all_scored: Sequence[Scored], toki: Tokenizer) -> None:
    """A CSV with a line for each token: document and position in it, both from 0, the token's text, and its loss in
    each model. Bytes that are a part of a character are written as \\x and their number."""
    pieces = toki.token_bytes()

    def text_of(i: int) -> str:
        if pieces is None:
            return toki.backend.id_to_token(i) or ""
        return pieces[i].decode("utf-8", "backslashreplace")

    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["document", "position", "text", *(one.label for one in all_scored)])
        for number, document in enumerate(bar(documents, desc="tokens", unit="document", delay=1, leave=False)):
            of_models = [one.losses[number] for one in all_scored]
            for position, i in enumerate(document.ids.tolist()):
                rows.writerow([number, position, text_of(i), *(f"{losses[position]:.6f}" for losses in of_models)])


def write_documents(
    path: Path, documents: Sequence[Document], all_scored: Sequence[Scored], toki: Tokenizer
) -> list[str]:
    """A CSV with a line for each document, and the lines of a table of its first and last. With models of both
    directions they are sorted by the arrow, backward minus forward per token, the largest first; else by the loss in
    the first model. Documents without a token are left out."""
    numbers = [number for number, document in enumerate(documents) if len(document.ids)]
    means = np.array([[one.losses[number].mean() for one in all_scored] for number in numbers])
    header = ["document", "tokens", "bytes", *(one.label for one in all_scored)]
    columns = [*means.T]
    if directions := both_directions([one.run for one in all_scored]):
        forward, backward = (means[:, which].mean(axis=1) for which in directions)
        columns += [backward - forward, 100 * (backward / forward - 1)]
        header += ["arrow", "arrow in percent"]
        order = np.argsort(-columns[-2], kind="stable")
    else:
        order = np.argsort(-columns[0], kind="stable")
    rows = [
        [
            str(numbers[i]),
            str(len(documents[numbers[i]].ids)),
            str(documents[numbers[i]].n_bytes),
            *(f"{column[i]:.6f}" for column in columns),
            words_of(documents[numbers[i]].ids, toki),
        ]
        for i in order
    ]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[*header, "begins"], *rows])
    few = len(rows) <= 2 * LISTED
    shown = rows if few else [*rows[:LISTED], ["..."] * len(rows[0]), *rows[-LISTED:]]
    lines = table([header, *(row[:-1] for row in shown)])
    return [lines[0], *(f"{line}  {row[-1]}" for line, row in zip(lines[1:], shown, strict=True))]


def score_text(
    runs: Sequence[Trained],
    toki: Tokenizer,
    bos_id: int,
    device: torch.device,
    path: str,
    reading: readers.Reading = PLAIN,
    tokens_csv: str | None = None,
    documents_csv: str | None = None,
) -> None:
    """Score a text, say what was found, and write what was asked for. UserError as in `read_documents`, and where
    documents are asked for of a text that is not divided."""
    documents = read_documents(path, toki, reading)
    if documents_csv and len(documents) < 2:
        raise UserError(
            f"{path}: expected several documents for --by_document, found one; say what stands between them with "
            r"--document_separator (\n\n for a blank line)"
        )
    with contextlib.ExitStack() as files:  # what cannot be written is told before the work
        of_documents, of_tokens = (
            files.enter_context(replacing(each)) if each else None for each in (documents_csv, tokens_csv)
        )
        found = scored(runs, [document.ids for document in documents], bos_id, device)
        tell(in_words("standard input" if path == "-" else path, documents, found))
        if of_documents:
            tell("\n".join(write_documents(of_documents, documents, found, toki)))
        if of_tokens:
            write_tokens(of_tokens, documents, found, toki)
    for what, written in (("documents", documents_csv), ("tokens", tokens_csv)):
        if written:
            tell(f"{what}: {written}", sys.stderr)
