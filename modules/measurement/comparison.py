"""From trained states to comparisons: who may be compared with whom, evaluated on what, and what is then known.

The arrow is one percent of the loss, so a comparison of runs that differ in anything but direction is worth nothing,
and is refused with the first things that differ. What must agree is what the config's fields are marked with (fields.py),
the data and the tokenizer by their fingerprints (not by their paths), and the steps done. What each step was trained
with (learning rate, optimizer, precision) is compared step by step, as it was and not as the last config says
(history.py). What only says where or how fast a run went (folders, logging, devices, micro-batches) may differ.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from modules.config import HELD_OUT, Config, parse_config
from modules.data.token_file import TokenFile, open_tokens, same_dataset
from modules.data.windows import Windows, split
from modules.measurement import arrow, contrast, token_classes
from modules.measurement.convergence import Convergence, convergence, in_words
from modules.models import LanguageModel, build_model
from modules.models.evaluate import held_out_losses, sub_window_losses
from modules.system import console
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer
from modules.training import validations
from modules.training.checkpoint import check_tensors, load_state
from modules.training.history import Stage, changes, first_difference
from modules.training.metrics import read_metrics
from modules.training.resume import stages_of

SHOWN_DIFFERENCES = 3
SUB_WINDOW_TOKENS = (
    1 << 18
)  # held-out tokens that are also read in shorter windows: as many passes as the context has powers of two


@dataclass(frozen=True)
class Trained:
    """A trained run without its weights, which are read when they are needed: a sweep of large models must not lie in
    memory at once.

    state: what the state holds beside model and optimizer. parameters: how many the model has. data_path: where its
    data are now.
    """

    path: Path
    config: Config
    state: dict
    parameters: int
    data_path: str

    @property
    def direction(self) -> str:
        return self.config.direction

    @property
    def seed(self) -> int:
        return self.config.training_params.seed

    @property
    def name(self) -> str:
        """The run's name without direction and seed: forward and backward runs of all seeds share it."""
        return base_name(self.config.name)

    @property
    def stages(self) -> list[Stage]:
        """What each of its steps was trained with."""
        return stages_of(self.state)

    @property
    def held_out_windows(self) -> int:
        """How many windows at the end of the data it was never trained on."""
        return self.state["held_out_tokens"] // self.config.model_params.context

    @property
    def metrics_path(self) -> Path:
        return self.path.parent.parent / "metrics" / f"{self.path.stem}.jsonl"


def base_name(run_name: str) -> str:
    """ "demo_forward_seed0" and "demo_backward" as "demo"."""
    return re.sub(r"_(forward|backward)(?=_|$)|_seed\d+$", "", run_name)


def read_run(path: Path, moved: Sequence[TokenFile] = ()) -> Trained:
    """Read what a state says of its run. `moved`: datasets that may not lie any more where the state has them.

    Raises UserError where the state is missing, damaged or none.
    """
    state = load_state(path)
    parameters = sum(tensor.numel() for tensor in state["model"].values())
    config = parse_config(state["config"], state["run"], source=str(path))
    data_path = next(
        (each.path for each in moved if each.matches(state["dataset"]["fingerprint"])), config.dataset_path
    )
    return Trained(
        Path(path),
        config,
        {key: value for key, value in state.items() if key not in ("model", "optimizer")},
        parameters,
        data_path,
    )


def facts(run: Trained) -> dict[str, object]:
    """All that must be equal in the two directions, by the name under which a difference is reported."""
    identity = run.config.identity()
    del identity["training_params.backwards"]
    return identity | {
        "data": run.state["dataset"]["fingerprint"],
        "tokenizer": run.state["dataset"]["tokenizer_fingerprint"],
        "steps trained": run.state["step"],
        HELD_OUT: run.held_out_windows,  # by the state: earlier versions counted them in another way
    }


def differences(one: Trained, other: Trained, but: Sequence[str] = ()) -> list[str]:
    """What the two runs differ in beside their direction and what is named in `but`; empty where a comparison of them
    is fair."""
    mine, others = facts(one), facts(other)
    if same_dataset(mine["data"], others["data"]):
        others["data"] = mine["data"]  # states of earlier versions hold half of the fingerprint
    found = [
        f"{key} ({shown(mine.get(key))} and {shown(others.get(key))})"
        for key in {**mine, **others}
        if key not in but and mine.get(key) != others.get(key)
    ]
    on_the_way = first_difference(one.stages, other.stages, min(one.state["step"], other.state["step"]))
    return found + ([on_the_way] if on_the_way else [])


def pair_up(runs: Sequence[Trained]) -> list[list[tuple[Trained, Trained]]]:
    """Groups of fair pairs (forward, backward): in a group the pairs differ in their seed only, in order of seed.

    Raises UserError where a run has no fair partner, or more than one.
    """
    by_direction = {
        direction: [run for run in runs if run.direction == direction] for direction in ("forward", "backward")
    }
    groups: list[list[tuple[Trained, Trained]]] = []
    for run in runs:
        others = by_direction["backward" if run.direction == "forward" else "forward"]
        partners = [other for other in others if not differences(run, other)]
        if len(partners) != 1:
            raise UserError(f"{run.path}: {why_not_one(run, others, partners)}")
        if run.direction == "forward":
            group = next(
                (group for group in groups if not differences(group[0][0], run, but=["training_params.seed"])), None
            )
            if group is None:
                groups.append(group := [])
            group.append((run, partners[0]))
    return [sorted(group, key=lambda pair: pair[0].seed) for group in groups]


def why_not_one(run: Trained, others: Sequence[Trained], partners: Sequence[Trained]) -> str:
    """What keeps `run` from having exactly one partner among `others`, the runs of the other direction."""
    if partners:
        return f"expected one run of the other direction, found {len(partners)} that are alike: {', '.join(str(p.path) for p in partners)}"
    if not others:
        return f"a {run.direction} run, but no run of the other direction was given to compare it with"
    nearest = min(others, key=lambda other: len(differences(run, other)))
    different = differences(run, nearest)
    more = f" and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
    return (
        f"no fair comparison: {nearest.path}, the most similar run of the other direction, differs in "
        f"{', '.join(different[:SHOWN_DIFFERENCES])}{more}"
    )


def shown(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Compared:
    """Pairs (forward, backward) that differ in their seed only, and what is known of them.

    comparison: see modules/measurement/report.py. losses: held-out losses by direction, nats [seeds, windows, tokens] in text
    order. sample: the arrow as contrasts take it. estimate: the arrow of time in percent: the half that turns round
    with the text, or, without a control, the whole. token_file: the data; None, like pairs, where others measured the
    losses.
    """

    pairs: Sequence[tuple[Trained, Trained]]
    comparison: dict
    losses: dict[str, np.ndarray]
    sample: arrow.Sample
    estimate: arrow.Estimate
    token_file: TokenFile | None


def compare(pairs: Sequence[tuple[Trained, Trained]], device: torch.device, toki: Tokenizer | None = None) -> Compared:
    """Evaluate pairs (forward, backward) that differ in their seed only, and compare.

    With a tokenizer also the arrow by class of token, and bits per byte of the held-out text itself instead of the
    whole file's average. Raises UserError where the data file or the tokenizer is not the one that the runs were
    trained on.
    """
    first = pairs[0][0]
    windows = held_out_windows(first)
    if toki is not None:
        windows.token_file.check_tokenizer(toki)
    evaluations = {
        direction: [evaluate(run, device) for run in runs]
        for direction, runs in zip(("forward", "backward"), zip(*pairs, strict=True), strict=True)
    }
    losses = {direction: np.stack([each.losses_WT for each in of_seeds]) for direction, of_seeds in evaluations.items()}
    found = arrow.measure(losses["forward"], losses["backward"])
    converged = convergence_of(pairs, found)
    ids = held_out_ids(windows)
    pieces = token_classes.pieces_of(toki) if toki else None
    bytes_per_token = np.mean([len(pieces[i]) for i in ids.ravel()]) if pieces else average_bytes_per_token(windows)
    classes = token_classes.classify(ids.ravel(), pieces).reshape(ids.shape) if pieces else None
    comparison = known_of_losses(first.name, "backward", found, windows.length, bytes_per_token) | {
        "by_length": by_length(evaluations, found),
        "convergence": asdict(converged) | {"moving": converged.moving, "verdict": in_words(converged)},
        "by_context": {
            key: values.tolist() for key, values in arrow.by_context(losses["forward"], losses["backward"]).items()
        },
        "by_class": arrow.by_class(
            losses["forward"], losses["backward"], classes, token_classes.NAMES, words_of(classes)
        )
        if pieces
        else None,
        "curves": curves_of(pairs),
        "control": None,
        "compared": what_was_compared(pairs),
    }
    return Compared(
        pairs,
        comparison,
        losses,
        arrow.sample(losses["forward"], losses["backward"]),
        found.percent,
        windows.token_file,
    )


def compare_losses(
    name: str, order: str, forward: np.ndarray, other: np.ndarray, documents: np.ndarray | None, text: str
) -> Compared:
    """The comparison of losses that somebody measured, nats [seeds, windows, tokens], `other` in the given order: all
    that losses alone can tell."""
    found = arrow.measure(forward, other, documents=documents)
    compared = {
        "text": text,
        "dataset": {},
        "model": None,
        "parameters": None,
        "steps": None,
        "tokens_seen": None,
        "seeds": list(range(len(forward))),
        "runs": [],
        "changed_on_the_way": [],
        "config": {},
    }
    by_context = arrow.by_context(forward, other) if forward.shape[2] > 1 else None
    comparison = known_of_losses(name, order, found, forward.shape[2], None) | {
        "by_length": [],
        "convergence": None,
        "by_context": {key: values.tolist() for key, values in by_context.items()} if by_context else None,
        "by_class": None,
        "curves": [],
        "control": None,
        "compared": compared,
    }
    return Compared(
        [],
        comparison,
        {"forward": forward, "backward": other},
        arrow.sample(forward, other, documents),
        found.percent,
        None,
    )


def known_of_losses(name: str, order: str, found: arrow.Arrow, context: int, bytes_per_token: float | None) -> dict:
    """The part of a comparison that losses alone tell."""
    return {
        "name": name,
        "order": order,
        "losses": {
            direction: {
                "nats_per_token": loss,
                "perplexity": arrow.perplexity(loss),
                "bits_per_byte": None if bytes_per_token is None else float(arrow.bits_per_byte(loss, bytes_per_token)),
            }
            for direction, loss in (("forward", found.forward), ("backward", found.backward))
        },
        "arrow": asdict(found)
        | {"verdict": found.verdict.replace("Backward", order.capitalize()), "outlook": found.outlook()},
        "held_out": {"windows": found.n_windows, "context": context, "tokens": found.n_tokens, "block": found.block},
    }


# Several comparisons
# ----------------------------------------------------------------------------------------------------


def with_controls(all_compared: Sequence[Compared]) -> list[Compared]:
    """The same, each with what its control says under "control": the half of the arrow that turns round with the text,
    and the half that does not.

    A control is the comparison of the same runs on the reversed text (control.py). None where there is none, and the
    tokenizer has a direction.
    """
    result = []
    for each in all_compared:
        control = next((other for other in all_compared if is_control(other, each)), None)
        said, turns = None, each.estimate
        if control is not None or each.token_file.symmetric:
            turns, stays = contrast.turning(each.sample, control.sample if control else None)
            said = {
                "name": control.comparison["name"] if control else None,
                "exact": control is None,
                "arrow": control.comparison["arrow"]["percent"] if control else None,
                "turns": asdict(turns),
                "stays": asdict(stays) if stays else None,
            }
        result.append(replace(each, comparison=each.comparison | {"control": said}, estimate=turns))
    return result


def is_control(control: Compared, text: Compared) -> bool:
    """Whether the first is the second on the reversed text."""
    if control.token_file.reversed_of is None or not text.token_file.matches(control.token_file.reversed_of):
        return False
    runs = [each.pairs[0][0] for each in (control, text)]
    seeds = [[forward.seed for forward, _ in each.pairs] for each in (control, text)]
    return seeds[0] == seeds[1] and not differences(*runs, but=("data", "tokenizer"))


def contrasts_of(all_compared: Sequence[Compared]) -> list[dict]:
    """Differences between the arrows of comparisons that differ in one thing, and trends along it, with Holm's
    correction over all of them.

    Controls are left out. Each: "what" ("docstrings: context 64 - context 16"), the fields of noise.Estimate, and
    "p_holm".
    """
    texts = [each for each in all_compared if each.token_file is not None and each.token_file.reversed_of is None]
    aspects = {
        "context": lambda each: each.comparison["held_out"]["context"],
        "parameters": parameters_without_positions,
        "text": text_of,
    }
    found = []
    for aspect, value_of in aspects.items():
        others = [name for name in aspects if name != aspect]
        rest_of = {id(each): tuple(aspects[name](each) for name in others) for each in texts}
        for rest in dict.fromkeys(rest_of.values()):
            group = sorted((each for each in texts if rest_of[id(each)] == rest), key=value_of)
            values = [value_of(each) for each in group]
            if len(set(values)) < max(2, len(group)):
                continue  # nothing differs, or something else does
            where = ", ".join(
                f"{name} {value:,}" if name != "text" else str(value) for name, value in zip(others, rest, strict=True)
            )
            shared = {
                "same_seeds": len({tuple(forward.seed for forward, _ in each.pairs) for each in group}) == 1,
                "same_text": len(
                    {(each.token_file.fingerprint, each.pairs[0][0].state["held_out_tokens"]) for each in group}
                )
                == 1,
            }
            for one, other in pairwise(group):
                found.append(
                    {
                        "what": f"{where}: {aspect} {value_of(other)} - {value_of(one)}",
                        **asdict(contrast.contrast(other.sample, one.sample, **shared)),
                    }
                )
            if aspect != "text" and len(group) > 2:
                found.append(
                    {
                        "what": f"{where}: trend with each doubling of {aspect}",
                        "trend": True,
                        **asdict(contrast.trend(values, [each.sample for each in group], **shared)),
                    }
                )
    return [each | {"p_holm": p} for each, p in zip(found, contrast.holm([each["p"] for each in found]), strict=True)]


def text_of(compared: Compared) -> str:
    return compared.comparison["compared"]["text"]


def parameters_without_positions(compared: Compared) -> int:
    """Parameters less the position embedding, which grows with the context and not with the model."""
    params = compared.pairs[0][0].config.model_params.model_dump()
    return compared.pairs[0][0].parameters - params.get("attn_length", 0) * params["embed_dim"]


# One comparison
# ---------------------------------------------------------------------------------------------------------


def words_of(classes: np.ndarray) -> np.ndarray:
    """Which word each token belongs to: a number that grows with each token that does not continue a word. `classes`
    [windows, tokens] in text order."""
    return np.cumsum(classes.ravel() != token_classes.INNER_PIECE).reshape(classes.shape)


def held_out_windows(run: Trained) -> Windows:
    """The held-out windows of a run. UserError where its data are not to be found, or were changed since it was
    trained."""
    recorded = run.state["dataset"]["fingerprint"]
    if not Path(run.data_path).is_file():
        raise UserError(
            f"{run.data_path}: the data that {run.path} was trained on are no longer there; say where they are with --data"
        )
    token_file = open_tokens(run.data_path)
    if not token_file.matches(recorded):
        raise UserError(
            f"{run.data_path}: not the data that {run.path} was trained on (fingerprint {token_file.fingerprint}, "
            f"expected {recorded}); say where those are with --data"
        )
    return split(
        token_file,
        run.config.model_params.context,
        run.config.stride,
        run.held_out_windows,
        run.config.step_windows,
        run.config.training_params.backwards,
    )[1]


def held_out_ids(windows: Windows) -> np.ndarray:
    """The held-out tokens in text order. [windows, tokens]"""
    return windows.token_file.gather(windows.first + windows.stride * np.arange(windows.count), windows.length)


def load_model(run: Trained, device: torch.device) -> LanguageModel:
    """The trained model, on `device`, for evaluation."""
    model = build_model(run.config.model, run.seed, **run.config.model_params.model_dump())
    weights = load_state(run.path)["model"]
    check_tensors(weights, {name: tensor.shape for name, tensor in model.state_dict().items()}, f"{run.path}: model")
    model.load_state_dict(weights)
    return model.to(device).eval()


@dataclass(frozen=True)
class Evaluation:
    """Held-out losses of one run, nats per token, in fp32 whatever the precision of training.

    losses_WT: of each token in text order [windows, tokens]. by_length: of windows read in shorter parts, length of
    these -> [windows], the first SUB_WINDOW_TOKENS of them.
    """

    losses_WT: np.ndarray
    by_length: dict[int, np.ndarray]


def evaluate(run: Trained, device: torch.device) -> Evaluation:
    """Read the state of `run` and evaluate it on its held-out windows."""
    model, windows, batch_size = load_model(run, device), held_out_windows(run), run.config.valid_batch_size
    some = replace(windows, count=max(2, min(len(windows), SUB_WINDOW_TOKENS // windows.length)))
    lengths = [
        2**power
        for power in range(1, windows.length.bit_length())
        if windows.length % 2**power == 0 and 2**power < windows.length
    ]
    return Evaluation(
        held_out_losses(model, windows, batch_size, device),
        {length: sub_window_losses(model, some, length, batch_size, device) for length in lengths},
    )


def by_length(evaluations: dict[str, list[Evaluation]], whole: arrow.Arrow) -> list[dict]:
    """The arrow of these models when the held-out windows are read in parts of 2, 4 ... tokens, and whole: a row a
    length."""

    def losses(direction: str, length: int) -> np.ndarray:
        return np.stack([each.by_length[length] for each in evaluations[direction]])[..., None]

    lengths = evaluations["forward"][0].by_length
    found = {length: arrow.measure(losses("forward", length), losses("backward", length)) for length in lengths}
    context = evaluations["forward"][0].losses_WT.shape[1]
    return [
        {
            "length": length,
            "forward": each.forward,
            "backward": each.backward,
            "percent": each.percent.value,
            "interval": each.percent.both,
            "windows": each.n_windows,
        }
        for length, each in (found | {context: whole}).items()
    ]


def convergence_of(pairs: Sequence[tuple[Trained, Trained]], found: arrow.Arrow) -> Convergence:
    """How far the models have come, from what their runs left beside their states."""
    run = pairs[0][0]
    training_losses = {"forward": [], "backward": []}
    for each in (each for pair in pairs for each in pair):
        if each.metrics_path.exists():
            last = [
                entry["loss"]
                for entry in read_metrics(each.metrics_path)
                if entry["split"] == "train" and entry["step"] > 0.9 * each.state["step"]
            ]
            training_losses[each.direction] += [np.mean(last)] if last else []
    known = all(len(losses) == len(pairs) for losses in training_losses.values())
    low, high = found.nats.both
    training_tokens = run.state["dataset"]["n_tokens"] - run.state["held_out_tokens"]
    return convergence(
        [validations_of(forward) for forward, _ in pairs],
        [validations_of(backward) for _, backward in pairs],
        run.state["step"],
        run.state["tokens"] / max(training_tokens, 1),
        {direction: float(np.mean(losses)) for direction, losses in training_losses.items()} if known else None,
        {"forward": found.forward, "backward": found.backward},
        (high - low) / 2,
    )


def validations_of(run: Trained) -> dict[int, np.ndarray]:
    """The losses of the held-out windows at each validation of a run, up to its last step; those that cannot be read
    are told of and left out."""
    folder = run.path.parent.parent / "validations" / run.path.stem
    read = {}
    for step in validations.steps(folder):
        if step <= run.state["step"]:
            try:
                read[step] = validations.read(folder, step, run.held_out_windows)
            except UserError as error:
                console.tell(f"warning: {error}", sys.stderr)
    return read


def average_bytes_per_token(windows: Windows) -> float | None:
    """Of the whole file; None for files of the older kind, which do not say."""
    text_bytes = windows.token_file.text_bytes
    return None if text_bytes is None else text_bytes / len(windows.token_file.tokens)


def curves_of(pairs: Sequence[tuple[Trained, Trained]]) -> list[dict]:
    """Losses while training, where the runs' metrics still lie beside their states."""
    if not all(run.metrics_path.exists() for pair in pairs for run in pair):
        return []
    return [{run.direction: curve(read_metrics(run.metrics_path)) for run in pair} for pair in pairs]


def curve(entries: Sequence[dict]) -> dict[str, dict[str, list]]:
    """The entries of a metrics file by split, as columns."""
    return {
        split_name: {key: [entry[key] for entry in entries if entry["split"] == split_name] for key in ("step", "loss")}
        for split_name in ("train", "valid")
    }


def what_was_compared(pairs: Sequence[tuple[Trained, Trained]]) -> dict:
    """Enough to make the comparison again."""
    run = pairs[0][0]
    config = run.config.to_dict()
    for key in ("backwards", "seed"):
        del config["training_params"][key]
    return {
        "text": Path(run.data_path).stem,
        "dataset": run.state["dataset"],
        "model": run.config.model,
        "parameters": run.parameters,
        "steps": run.state["step"],
        "tokens_seen": run.state["tokens"],
        "seeds": [forward.seed for forward, _ in pairs],
        "runs": [each.config.name for pair in pairs for each in pair],
        "precision": run.state["precision"],
        "changed_on_the_way": history_of(run),
        "versions": run.state["versions"],
        "config": config,
    }


def history_of(run: Trained) -> list[str]:
    """How the run's settings changed while it trained, a line a change."""
    unknown = [
        "trained by a version that kept no history: whether its settings changed before its last save is not known"
    ]
    return (unknown if run.state["early_stages_unknown"] else []) + changes(run.stages)
