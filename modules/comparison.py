"""From trained states to comparisons: who may be compared with whom, evaluated on what, and what is then known.

The arrow is one percent of the loss, so a comparison of runs that differ in anything but direction is worth nothing,
and is refused with the first things that differ. What must agree is listed in `facts`: the data and the
tokenizer by their fingerprints (not by their paths), the model, all that decides a step's result, the steps done, and the held-out
windows. What only says where or how fast a run went (folders, logging, devices, micro-batches) may differ.
"""
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from modules import arrow, token_classes
from modules.checkpoint import load_state
from modules.config import Config, parse_config
from modules.dataset import Windows, open_tokens, split
from modules.errors import UserError
from modules.evaluate import held_out_losses
from modules.metrics import read_metrics
from modules.models import LanguageModel, build_model
from modules.tokenizer import Tokenizer

# Of training_params: what cannot change a run's result, or is in `facts` in another form.
NOT_COMPARED = {"dataset_folder", "backwards", "batch_size", "aggregate", "steps_to_train", "save_every", "backup_every", "step_log",
                "valid_steps", "valid_batch_size", "state_save_loc", "precision", "compile", "parallel", "checkpoint_activations", "stride"}
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Trained:
    """A trained run without its weights, which are read when they are needed: a sweep of large models must not lie in memory at once.

    state: what the state holds beside model and optimizer. parameters: how many the model has.
    """
    path: Path
    config: Config
    state: dict
    parameters: int

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
    def metrics_path(self) -> Path:
        return self.path.parent.parent / "metrics" / f"{self.path.stem}.jsonl"


def base_name(run_name: str) -> str:
    """"demo_forward_seed0" and "demo_backward" as "demo"."""
    return re.sub(r"_(forward|backward)(?=_|$)|_seed\d+$", "", run_name)


def read_run(path: Path) -> Trained:
    """Read what a state says of its run. UserError where it is missing, damaged or no state."""
    state = load_state(path)
    parameters = sum(tensor.numel() for tensor in state["model"].values())
    config = parse_config(state["config"], state["run"], source=str(path))
    return Trained(Path(path), config, {key: value for key, value in state.items() if key not in ("model", "optimizer")}, parameters)


def facts(run: Trained) -> dict[str, object]:
    """All that must be equal in the two directions, by the name under which a difference is reported."""
    config, state = run.config, run.state
    training = config.training_params.model_dump(exclude=NOT_COMPARED)
    return {
        "data": state["dataset"]["fingerprint"], "tokenizer": state["dataset"]["tokenizer_fingerprint"], "model": config.model,
        "steps trained": state["step"], "windows a step": config.training_params.batch_size * config.training_params.aggregate,
        "stride": config.stride, "held-out windows": held_out_count(config), "precision": state["precision"],
        **{f"model_params.{key}": value for key, value in config.model_params.model_dump().items()},
        **{f"training_params.{key}": value for key, value in training.items()},
        **{f"optim_params.{key}": value for key, value in config.optim_params.model_dump().items()}}


def held_out_count(config: Config) -> int:
    """Windows held out at the end of the data."""
    return config.training_params.valid_steps * config.valid_batch_size


def pair_up(runs: Sequence[Trained]) -> list[list[tuple[Trained, Trained]]]:
    """Groups of fair pairs (forward, backward): in a group the pairs differ in their seed only, in order of seed.

    Raises UserError where a run has no fair partner, or more than one.
    """
    by_direction = {direction: [run for run in runs if run.direction == direction] for direction in ("forward", "backward")}
    groups = defaultdict(list)
    for run in runs:
        others = by_direction["backward" if run.direction == "forward" else "forward"]
        partners = [other for other in others if facts(other) == facts(run)]
        if len(partners) != 1:
            raise UserError(f"{run.path}: {why_not_one(run, others, partners)}")
        if run.direction == "forward":
            groups[json.dumps(facts(run) | {"training_params.seed": None})].append((run, partners[0]))
    return [sorted(group, key=lambda pair: pair[0].seed) for group in groups.values()]


def why_not_one(run: Trained, others: Sequence[Trained], partners: Sequence[Trained]) -> str:
    """What keeps `run` from having exactly one partner among `others`, the runs of the other direction."""
    if partners:
        return f"expected one run of the other direction, found {len(partners)} that are alike: {', '.join(str(p.path) for p in partners)}"
    if not others:
        return f"a {run.direction} run, but no run of the other direction was given to compare it with"
    mine = facts(run)

    def differences(other: Trained) -> list[str]:
        return [f"{key} ({shown(mine.get(key))} and {shown(value)})" for key, value in facts(other).items() if value != mine.get(key)]

    nearest = min(others, key=lambda other: len(differences(other)))
    different = differences(nearest)
    more = f" and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
    return (f"no fair comparison: {nearest.path}, the most similar run of the other direction, differs in "
            f"{', '.join(different[:SHOWN_DIFFERENCES])}{more}")


def shown(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def compare(pairs: Sequence[tuple[Trained, Trained]], device: torch.device, toki: Tokenizer | None = None) -> dict:
    """The comparison (see modules/report.py) of pairs (forward, backward) that differ in their seed only.

    With a tokenizer also the arrow by class of token, and bits per byte of the held-out text itself instead of the whole file's average.
    Raises UserError where the data file or the tokenizer is not the one that the runs were trained on.
    """
    first = pairs[0][0]
    windows = held_out_windows(first)
    if toki is not None:
        check_tokenizer(first, toki)
    losses = {direction: np.stack([losses_of(run, device) for run in runs])
              for direction, runs in zip(("forward", "backward"), zip(*pairs, strict=True), strict=True)}
    found = arrow.measure(losses["forward"], losses["backward"])
    ids = held_out_ids(windows)
    pieces = token_classes.pieces_of(toki) if toki else None
    bytes_per_token = np.mean([len(pieces[i]) for i in ids.ravel()]) if toki else average_bytes_per_token(windows)
    classes = token_classes.classify(ids.ravel(), pieces).reshape(ids.shape) if toki else None
    return {
        "name": first.name,
        "losses": {direction: {"nats_per_token": loss, "perplexity": arrow.perplexity(loss),
                               "bits_per_byte": None if bytes_per_token is None else float(arrow.bits_per_byte(loss, bytes_per_token))}
                   for direction, loss in (("forward", found.forward), ("backward", found.backward))},
        "arrow": asdict(found) | {"verdict": found.verdict},
        "held_out": {"windows": found.n_windows, "context": windows.length, "tokens": found.n_tokens, "block": found.block},
        "by_context": {key: values.tolist() for key, values in arrow.by_context(losses["forward"], losses["backward"]).items()},
        "by_class": arrow.by_class(losses["forward"], losses["backward"], classes, token_classes.NAMES) if toki else None,
        "curves": curves_of(pairs),
        "compared": what_was_compared(pairs)}


def held_out_windows(run: Trained) -> Windows:
    """The held-out windows of a run, after a look that the data file is still the one it was trained on."""
    params = run.config.training_params
    token_file = open_tokens(run.config.dataset_path)
    if token_file.fingerprint != run.state["dataset"]["fingerprint"]:
        raise UserError(f"{params.dataset_folder}: not the data that {run.path} was trained on (fingerprint {token_file.fingerprint}, "
                        f"expected {run.state['dataset']['fingerprint']})")
    return split(token_file, run.config.model_params.context, run.config.stride, held_out_count(run.config),
                 params.batch_size * params.aggregate, params.backwards)[1]


def held_out_ids(windows: Windows) -> np.ndarray:
    """The held-out tokens in text order. [windows, tokens]"""
    return windows.token_file.gather(windows.first + windows.stride * np.arange(windows.count), windows.length)


def check_tokenizer(run: Trained, toki: Tokenizer) -> None:
    expected = run.state["dataset"]["tokenizer_fingerprint"]
    if expected is not None and toki.fingerprint != expected:
        raise UserError(f"{toki.folder}: not the tokenizer of the data that {run.path} was trained on (fingerprint "
                        f"{toki.fingerprint[:12]}, expected {expected[:12]})")


def load_model(run: Trained, device: torch.device) -> LanguageModel:
    """The trained model, on `device`, for evaluation."""
    model = build_model(run.config.model, run.seed, **run.config.model_params.model_dump())
    model.load_state_dict(load_state(run.path)["model"])
    return model.to(device).eval()


def losses_of(run: Trained, device: torch.device) -> np.ndarray:
    """Held-out losses in text order, nats [windows, tokens], in fp32 whatever the precision of training."""
    return held_out_losses(load_model(run, device), held_out_windows(run), run.config.valid_batch_size, device)


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
    return {split_name: {key: [entry[key] for entry in entries if entry["split"] == split_name] for key in ("step", "loss")}
            for split_name in ("train", "valid")}


def what_was_compared(pairs: Sequence[tuple[Trained, Trained]]) -> dict:
    """Enough to make the comparison again."""
    run = pairs[0][0]
    config = run.config.to_dict()
    for key in ("backwards", "seed"):
        del config["training_params"][key]
    return {"text": Path(run.config.training_params.dataset_folder).stem, "dataset": run.state["dataset"], "model": run.config.model,
            "parameters": run.parameters, "steps": run.state["step"], "tokens_seen": run.state["tokens"],
            "seeds": [forward.seed for forward, _ in pairs], "runs": [each.config.name for pair in pairs for each in pair],
            "precision": run.state["precision"], "versions": run.state["versions"], "config": config}
