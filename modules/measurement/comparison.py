"""From evaluations to comparisons: what is known of the runs of one config, in the form in which arrow.json holds it.

A `Comparison` is a tree of dataclasses, one for each config and each order of reading beside the reference;
`dataclasses.asdict` of it is what arrow.json holds, so that this file has everything in report.md and every figure can
be drawn again from it. A `Measurement` is a comparison with the losses it stands on.

The reference is forward and the order backward, unless others are asked for. Whatever they are, fields called `forward`
are of the reference and fields called `backward` of the order; dictionaries have the names of the two.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.data.orders import BACKWARD, FORWARD, positions
from modules.data.token_file import TokenFile
from modules.measurement import arrow, token_classes
from modules.measurement.convergence import Convergence, LossPair, convergence
from modules.measurement.documents import FEWEST_GROUPS, PASSAGE_TOKENS, Largest, document_of_tokens, groups_of, largest
from modules.measurement.evaluation import Evaluation
from modules.measurement.held_out import HeldOutText
from modules.measurement.pairing import Trained
from modules.system import console
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer
from modules.training import validations
from modules.training.history import changes
from modules.training.metrics import read_metrics

SHOWN_CHARACTERS = 80  # of a document or passage


@dataclass(frozen=True)
class Loss:
    """A held-out loss. bits_per_byte: None where the bytes are not known."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class HeldOut:
    """On what losses were measured. block: windows that count as one; shared: because they do in all comparisons of the
    report. groups: of neighbouring documents, which count as one instead; None where they are not known, or too few.
    folds: so many parts of the text, each held out by another seed; None where all have the same."""

    windows: int
    context: int
    tokens: int
    block: int
    shared: bool
    groups: int | None
    folds: int | None


@dataclass(frozen=True)
class LengthRow:
    """The arrow of the same models on windows read in parts of `length` tokens: nats per token, and percent with its
    interval over both."""

    length: int
    forward: float
    backward: float
    percent: float
    interval: arrow.Interval
    windows: int


@dataclass(frozen=True)
class Line:
    """Losses at steps, nats per token."""

    step: list[int]
    loss: list[float]


@dataclass(frozen=True)
class Curve:
    """The losses that a run logged while it trained."""

    train: Line
    valid: Line


@dataclass(frozen=True)
class Halves:
    """Both halves of an arrow in percent, as in `Control`: in windows of `at` tokens, or at the step `at`."""

    at: int
    turns: arrow.Estimate
    stays: arrow.Estimate


@dataclass(frozen=True)
class Control:
    """What the reversed control says: the half of the arrow that turns round with the text, which is the arrow of time
    between two orders that are each other's mirror image, as forward and backward are, and the half that does not.

    The halves are in percent of the mean of both directions' losses, so that an arrow that turns round exactly leaves
    zero, and in nats per token. name, arrow: of the control's comparison; None where it is exact, as the tokenizer has
    no direction: then all turns. by_length, by_step: the halves in shorter windows and at each validation that text and
    control have; empty where it is exact.
    """

    name: str | None
    exact: bool
    arrow: arrow.Estimate | None
    turns: arrow.Estimate
    stays: arrow.Estimate | None
    turns_nats: arrow.Estimate
    stays_nats: arrow.Estimate | None
    by_length: list[Halves]
    by_step: list[Halves]


@dataclass(frozen=True)
class Provenance:
    """What was compared: enough to make the comparison again, of the reference's run of the first seed. What is not
    known of others' losses is None or empty.

    text: the name of the data. runs: the names of all.
    """

    text: str
    dataset: dict
    model: str | None
    parameters: int | None
    steps: int | None
    tokens_seen: int | None
    seeds: list[int]
    runs: list[str]
    precision: str | None
    changed_on_the_way: list[str]
    versions: dict[str, str]
    config: dict


@dataclass(frozen=True)
class Comparison:
    """All that is told of a config and an order. config: its name, with a number behind where another has the same, and
    name: that of the comparison (`called`). order: what is compared, with reference: what it is compared to;
    in_one_model: the orders of the model, "forward + backward", where one model reads in both. None stands for what is
    not known, curves are empty then."""

    name: str
    config: str
    order: str
    reference: str
    in_one_model: str | None
    losses: dict[str, Loss]
    arrow: arrow.Arrow
    held_out: HeldOut
    by_length: list[LengthRow]
    convergence: Convergence | None
    by_context: arrow.ByContext | None
    by_position: arrow.ByPosition | None
    by_class: list[arrow.ClassRow] | None
    documents: Largest | None
    passages: Largest | None
    curves: list[dict[str, Curve]]
    control: Control | None
    compared: Provenance

    @property
    def text(self) -> str:
        return self.compared.text

    @property
    def is_of_directions(self) -> bool:
        """Whether it is the arrow of time between models of one direction each."""
        return (self.reference, self.order, self.in_one_model) == (FORWARD, BACKWARD, None)

    @property
    def which(self) -> tuple[str, str, str | None]:
        """The orders: comparisons that differ in them are told apart."""
        return self.reference, self.order, self.in_one_model

    @property
    def context(self) -> int:
        return self.held_out.context

    @property
    def positions(self) -> str:
        """How the model knows where a token stands: learned, rope or none."""
        return self.compared.config["model_params"].get("position", "none")

    @property
    def size(self) -> str:
        """The model's shape in words: the same for all context lengths, which its parameters are not."""
        params = self.compared.config["model_params"]
        return f"{params['n_layers']} layers, width {params['embed_dim']}"

    @property
    def parameters(self) -> int | None:
        """Parameters less the position embedding, which grows with the context and not with the model; None where the
        model is not known."""
        if self.compared.parameters is None:
            return None
        params = self.compared.config["model_params"]
        learned = params.get("attn_length", 0) if params.get("position") == "learned" else 0
        return self.compared.parameters - learned * params["embed_dim"]


@dataclass(frozen=True)
class Measurement:
    """A comparison and what it stands on.

    pairs: evaluations (reference, order) that differ in their seed only; held_out: the text that they have held out.
    Empty and None where others measured the losses. losses: held-out losses by order, nats [seeds, windows, tokens] in
    text order. documents: the group of documents of each window [windows], and document_of_tokens the document of each
    token [1 or folds, windows x tokens]; None where they are not known (groups also where they are too few, or seeds
    have folds). by_length, by_step: losses in shorter windows, and at each validation that all runs have. estimate: the
    arrow of time in percent: the half that turns round with the text, or, without a control or where the two orders are
    no mirror images, the whole. control: the one that was trained, if one was.
    """

    comparison: Comparison
    pairs: Sequence[tuple[Evaluation, Evaluation]]
    held_out: HeldOutText | None
    losses: dict[str, np.ndarray]
    documents: np.ndarray | None
    document_of_tokens: np.ndarray | None
    by_length: dict[int, LossPair]
    by_step: dict[int, LossPair]
    estimate: arrow.Estimate
    control: "Measurement | None" = None

    def sample(self, unit: str = "percent") -> arrow.Sample:
        """The arrow as contrasts take it."""
        one, other = self.comparison.reference, self.comparison.order
        return arrow.sample(self.losses[one], self.losses[other], self.documents, unit, self.folds)

    @property
    def folds(self) -> bool:
        """Whether each seed has held out another part of the text."""
        return self.held_out is not None and self.held_out.folds

    @property
    def seeds(self) -> list[int]:
        return [reference.run.seed for reference, _ in self.pairs]

    @property
    def token_file(self) -> TokenFile:
        """The dataset, where the runs are here."""
        assert self.held_out is not None
        return self.held_out.token_file

    @property
    def is_of_a_text(self) -> bool:
        """Whether it is of runs here, and not of a control."""
        return self.held_out is not None and self.held_out.token_file.reversed_of is None


def compare(
    pairs: Sequence[tuple[Evaluation, Evaluation]],
    text: HeldOutText,
    toki: Tokenizer | None = None,
    block_tokens: float | None = None,
) -> Measurement:
    """Compare evaluations (reference, order), in pairs on the same held-out windows, that differ in their seed only.

    With a tokenizer also the arrow by class of token, and bits per byte of the held-out text itself instead of the
    whole file's average. block_tokens: how many held-out tokens count as one in all comparisons of the report.
    """
    first, second = pairs[0]
    reference, order, in_one_model = first.run.order, second.run.order, first.run.in_one_model
    forward, backward = stacked(pairs)
    starts = text.token_file.documents
    documents = None if starts is None or text.folds else groups_of(starts, text.windows[0])
    of_tokens = None if starts is None else document_of_tokens(starts, text.tokens)
    names = {"order": order, "reference": reference, "in_one_model": in_one_model is not None}
    found, shared = measured_alike(forward, backward, documents, block_tokens, folds=text.folds, **names)
    one, other = text.laid_out(forward), text.laid_out(backward)
    pieces = token_classes.pieces_of(toki) if toki else None
    by_class = words_at = None
    if pieces:
        ids = text.ids()
        classes = token_classes.classify(ids.ravel(), pieces).reshape(ids.shape)
        by_class = arrow.by_class(one, other, classes, token_classes.NAMES, token_classes.words_of(classes))
        bytes_per_token = float(np.mean([len(pieces[i]) for i in ids.ravel()]))
        words_at = words_from(ids.ravel(), pieces)
    else:
        bytes_per_token = average_bytes_per_token(text.token_file)
    passages = np.arange(found.n_tokens) // PASSAGE_TOKENS
    in_parts, by_step = losses_by_length(pairs, documents, text.folds), losses_by_step(pairs, documents, text.folds)
    comparison = Comparison(
        name=called(first.run.name, reference, order, in_one_model),
        config=first.run.name,
        order=order,
        reference=reference,
        in_one_model=in_one_model,
        losses=losses_of(found, bytes_per_token, reference, order),
        arrow=found,
        held_out=held_out(found, text.length, shared, documents, len(pairs) if text.folds else None),
        by_length=by_length(in_parts, found, text.length),
        convergence=None if pairs[0][0].run.state.get("notes") else convergence_of(pairs, found, by_step),
        by_context=arrow.by_context(one, other, (places_in(text, pairs, 0), places_in(text, pairs, 1))),
        by_position=arrow.by_position(one, other),
        by_class=by_class,
        documents=None
        if of_tokens is None
        else largest(one, other, text.laid_out(of_tokens)[0], text.laid_out(text.tokens)[0], words_at),
        passages=largest(one, other, passages, np.arange(found.n_tokens), words_at) if words_at else None,
        curves=curves_of(pairs),
        control=None,
        compared=provenance(pairs),
    )
    losses = {reference: forward, order: backward}
    return Measurement(comparison, pairs, text, losses, documents, of_tokens, in_parts, by_step, found.percent)


def called(config: str, reference: str, order: str, in_one_model: str | None = None) -> str:
    """The name of a comparison: that of its config, with what is not as usual behind it."""
    model = f", {in_one_model} in one model" if in_one_model else ""
    if reference != FORWARD:
        return f"{config}{model}, {order} against {reference}"
    return f"{config}{model}" + ("" if order == BACKWARD else f", {order}")


def places_of(evaluation: Evaluation) -> np.ndarray:
    """Where the held-out tokens stand that are read one after the other: [tokens], or [windows, tokens]."""
    return evaluation.windows.places(np.arange(len(evaluation.windows)))


def places_in(text: HeldOutText, pairs: Sequence[tuple[Evaluation, Evaluation]], order: int) -> np.ndarray:
    """Those of all held-out windows, in the first order or the second: [tokens], or [all windows, tokens]."""
    places = places_of(pairs[0][order])
    if places.ndim == 1 or not text.folds:
        return places
    return text.laid_out(np.stack([places_of(pair[order]) for pair in pairs]))[0]


def compare_losses(
    name: str,
    order: str,
    forward: np.ndarray,
    other: np.ndarray,
    documents: np.ndarray | None,
    text: str,
    block_tokens: float | None = None,
    reference: str = FORWARD,
    folds: bool = False,
) -> Measurement:
    """The comparison of losses that somebody measured, nats [seeds, windows, tokens], `forward` in the order
    `reference` and `other` in the given order: all that losses alone can tell. documents [windows], folds:
    see `arrow.measure`."""
    found, shared = measured_alike(forward, other, documents, block_tokens, folds, order=order, reference=reference)
    context = forward.shape[2]
    one, two = (np.concatenate(each)[None] if folds else each for each in (forward, other))
    places, has_tokens = known_places(reference, order, context), context > 1
    of_tokens = None if documents is None else np.repeat(documents, context)[None]
    comparison = Comparison(
        name=called(name, reference, order),
        config=name,
        order=order,
        reference=reference,
        in_one_model=None,
        losses=losses_of(found, None, reference, order),
        arrow=found,
        held_out=held_out(found, context, shared, documents, len(forward) if folds else None),
        by_length=[],
        convergence=None,
        by_context=arrow.by_context(one, two, places) if has_tokens and places else None,
        by_position=arrow.by_position(one, two) if has_tokens else None,
        by_class=None,
        documents=None,
        passages=None,
        curves=[],
        control=None,
        compared=Provenance(
            text=text,
            dataset={},
            model=None,
            parameters=None,
            steps=None,
            tokens_seen=None,
            seeds=list(range(len(forward))),
            runs=[],
            precision=None,
            changed_on_the_way=[],
            versions={},
            config={},
        ),
    )
    losses = {reference: forward, order: other}
    return Measurement(comparison, [], None, losses, documents, of_tokens, {}, {}, found.percent)


def known_places(reference: str, order: str, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The positions of both orders [length]; None where one is a word that names no fixed order."""
    try:
        return positions(reference, length), positions(order, length)
    except ValueError:
        return None


def stacked(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> tuple[np.ndarray, np.ndarray]:
    """The held-out losses of the reference and of the order, each [seeds, windows, tokens]."""
    reference, order = (np.stack([each.losses_WT for each in of_seeds]) for of_seeds in zip(*pairs, strict=True))
    return reference, order


def measured_alike(
    forward: np.ndarray,
    backward: np.ndarray,
    documents: np.ndarray | None,
    block_tokens: float | None,
    folds: bool = False,
    **names,
) -> tuple[arrow.Arrow, bool]:
    """The arrow, and whether it was measured with the block that the comparisons of a report share: documents and folds
    take its place. names: what `arrow.measure` says of the orders."""
    found = arrow.measure(forward, backward, documents=documents, folds=folds, **names)
    if block_tokens is None or documents is not None or folds:
        return found, False
    return arrow.measure(forward, backward, arrow.block_for(found, block_tokens), **names), True


def held_out(
    found: arrow.Arrow, context: int, shared: bool, documents: np.ndarray | None, folds: int | None = None
) -> HeldOut:
    groups = None if documents is None else len(np.unique(documents))
    return HeldOut(found.n_windows, context, found.n_tokens, found.block, shared, groups, folds)


def words_from(ids: np.ndarray, pieces: Sequence[bytes]) -> Callable[[int, int], str]:
    """A function that gives the first words of `number` tokens of `ids` from `start` on, in one line."""

    def words(start: int, number: int) -> str:
        text = b"".join(pieces[i] for i in ids[start : start + min(number, PASSAGE_TOKENS)])
        return " ".join(text.decode("utf-8", errors="replace").split())[:SHOWN_CHARACTERS]

    return words


def losses_of(found: arrow.Arrow, bytes_per_token: float | None, reference: str, order: str) -> dict[str, Loss]:
    """Both losses in all units."""
    return {
        name: Loss(
            nats_per_token=loss,
            perplexity=arrow.perplexity(loss),
            bits_per_byte=None if bytes_per_token is None else float(arrow.bits_per_byte(loss, bytes_per_token)),
        )
        for name, loss in ((reference, found.forward), (order, found.backward))
    }


def by_length(in_parts: dict[int, LossPair], whole: arrow.Arrow, context: int) -> list[LengthRow]:
    """The arrow of these models when the held-out windows are read in shorter parts, and whole: a row a length."""
    found = {length: losses.measured for length, losses in in_parts.items()}
    return [
        LengthRow(length, each.forward, each.backward, each.percent.value, each.percent.both, each.n_windows)
        for length, each in (found | {context: whole}).items()
    ]


def losses_by_length(
    pairs: Sequence[tuple[Evaluation, Evaluation]], documents: np.ndarray | None, folds: bool
) -> dict[int, LossPair]:
    """The losses of the held-out windows read in parts of 2, 4 ... tokens, by that length."""
    of_parts = None if documents is None else documents[pairs[0][0].in_parts]
    if of_parts is not None and len(np.unique(of_parts)) < FEWEST_GROUPS:
        of_parts = None
    return by_key([[each.by_length for each in pair] for pair in pairs], of_parts, folds)


def losses_by_step(
    pairs: Sequence[tuple[Evaluation, Evaluation]], documents: np.ndarray | None, folds: bool
) -> dict[int, LossPair]:
    """The losses of the held-out windows at each validation that all runs have, by step."""
    return by_key([[validations_of(each.run) for each in pair] for pair in pairs], documents, folds)


def by_key(
    pairs: Sequence[Sequence[dict[int, np.ndarray]]], documents: np.ndarray | None, folds: bool
) -> dict[int, LossPair]:
    """Losses [windows] of a pair of runs for each seed, at the keys that all have, in order."""
    found = {}
    for key in sorted(set.intersection(*(set(each) for pair in pairs for each in pair))):
        forward, backward = (
            np.stack([each[key] for each in of_order])[..., None] for of_order in zip(*pairs, strict=True)
        )
        found[key] = LossPair(forward, backward, documents, folds)
    return found


def convergence_of(
    pairs: Sequence[tuple[Evaluation, Evaluation]], found: arrow.Arrow, by_step: dict[int, LossPair]
) -> Convergence:
    """How far the models have come, from what their runs left beside their states."""
    runs = [[each.run for each in of_seeds] for of_seeds in zip(*pairs, strict=True)]
    run = runs[0][0]
    at_the_end = {
        each[0].order: [loss for one in each if (loss := last_training_loss(one)) is not None] for each in runs
    }
    known = all(len(losses) == len(pairs) for losses in at_the_end.values())
    low, high = found.nats.both
    training_tokens = run.state["dataset"]["n_tokens"] - run.state["held_out_tokens"]
    return convergence(
        by_step,
        run.state["step"],
        run.state["tokens"] / max(training_tokens, 1),
        {direction: float(np.mean(losses)) for direction, losses in at_the_end.items()} if known else None,
        dict(zip(at_the_end, (found.forward, found.backward), strict=True)),
        (high - low) / 2,
    )


def last_training_loss(run: Trained) -> float | None:
    """The mean training loss of the last tenth of a run's steps; None where its metrics are not there, or it is one of
    several orders."""
    if run.in_one_model or not run.metrics_path.exists():
        return None
    last = [
        entry["loss"]
        for entry in read_metrics(run.metrics_path)
        if entry["split"] == "train" and entry["step"] > 0.9 * run.state["step"]
    ]
    return float(np.mean(last)) if last else None


def validations_of(run: Trained) -> dict[int, np.ndarray]:
    """The losses of the held-out windows at each validation of a run, up to its last step; those that cannot be read
    are told of and left out."""
    folder = run.path.parent.parent / "validations" / run.path.stem
    read, orders = {}, len(run.config.orders)
    shape = (orders, run.held_out_windows) if orders > 1 else (run.held_out_windows,)
    for step in validations.steps(folder):
        if step <= run.state["step"]:
            try:
                losses = validations.read(folder, step, *shape)
                read[step] = losses[run.number] if orders > 1 else losses
            except UserError as error:
                console.tell(f"warning: {error}", sys.stderr)
    return read


def average_bytes_per_token(token_file: TokenFile) -> float | None:
    """Of the whole file; None for files of the older kind, which do not say."""
    text_bytes = token_file.text_bytes
    return None if text_bytes is None else text_bytes / len(token_file.tokens)


def curves_of(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[dict[str, Curve]]:
    """For each seed the curve of both orders, where the runs' metrics still lie beside their states."""
    runs = [[each.run for each in pair] for pair in pairs]
    if not all(run.metrics_path.exists() for pair in runs for run in pair):
        return []
    return [{run.order: curve(read_metrics(run.metrics_path), run.order) for run in pair} for pair in runs]


def curve(entries: Sequence[dict], order: str) -> Curve:
    """The entries of a metrics file. Where a model reads in several orders, the training loss is their mean, and the
    held-out one that of `order`."""
    lines = []
    for name in ("train", "valid"):
        of_split = [entry for entry in entries if entry["split"] == name]
        losses = [entry.get("losses", {}).get(order, entry["loss"]) for entry in of_split]
        lines.append(Line([entry["step"] for entry in of_split], losses))
    return Curve(*lines)


def provenance(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> Provenance:
    run = pairs[0][0].run
    config = run.config.to_dict()
    for key in ("order", "backwards", "seed"):
        del config["training_params"][key]
    return Provenance(
        text=Path(run.data_path).stem,
        dataset=run.state["dataset"],
        model=run.config.model,
        parameters=run.parameters,
        steps=run.state["step"],
        tokens_seen=run.state["tokens"],
        seeds=[reference.run.seed for reference, _ in pairs],
        runs=list(dict.fromkeys(each.run.config.name for pair in pairs for each in pair)),
        precision=run.state["precision"],
        changed_on_the_way=history_of(run),
        versions=run.state["versions"],
        config=config,
    )


def history_of(run: Trained) -> list[str]:
    """What must be told of a run that the config does not say: where it began, who trained it, and how its settings
    changed while it trained, a line a change."""
    lines = list(run.state.get("notes", []))
    if initial := run.state.get("initial_weights"):
        which = "those of its own order" if initial["family"] else f"fingerprint {initial['fingerprint'][:12]}"
        lines.append(f"began with the weights of {run.config.training_params.init_from} ({which}), not with new ones")
    if run.state["early_stages_unknown"] and not lines:
        lines.append(
            "trained by a version that kept no history: whether its settings changed before its last save is not known"
        )
    return lines + changes(run.stages)
