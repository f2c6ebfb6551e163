"""Who may be compared with whom: the runs behind states, and what they must agree in.

The arrow is one percent of the loss, so a comparison of runs that differ in anything but direction is worth nothing,
and is refused with the first things that differ. What must agree is what the config's fields are marked with
(fields.py), the data and the tokenizer by their fingerprints (not by their paths), and the steps done. What each step
was trained with (learning rate, optimizer, precision) is compared step by step, as it was and not as the last config
says (history.py). What only says where or how fast a run went (folders, logging, devices, micro-batches) may differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.config import HELD_OUT, Config, parse_config
from modules.data.token_file import TokenFile, same_dataset
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from modules.training.history import Stage, first_difference
from modules.training.resume import stages_of

SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Trained:
    """A trained run without its weights: a sweep of large models must not lie in memory at once, and what may not be
    compared is refused before anything is evaluated. evaluation.py reads them.

    state: what the state holds beside its tensors. parameters: how many the model has. data_path: where its
    data are now.
    """

    path: Path
    config: Config
    state: dict
    parameters: int
    data_path: str

    @property
    def direction(self) -> str:
        return self.config.order

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
    """Read what a state says of its run, without its tensors. `moved`: datasets that may not lie any more where the
    state has them.

    Raises UserError where the state is missing, damaged or none.
    """
    state = load_state(path, mapped=True)
    config = parse_config(state["config"], state["run"], source=str(path))
    recorded = state["dataset"]["fingerprint"]
    return Trained(
        path=Path(path),
        config=config,
        state={key: value for key, value in state.items() if key not in ("model", "optimizer", "unlogged")},
        parameters=sum(tensor.numel() for tensor in state["model"].values()),
        data_path=next((each.path for each in moved if each.matches(recorded)), config.dataset_path),
    )


def facts(run: Trained) -> dict[str, Any]:
    """All that must be equal in the two directions, by the name under which a difference is reported."""
    identity = run.config.identity()
    del identity["training_params.order"]
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
    for run in runs:
        if run.direction not in by_direction:
            raise UserError(f"{run.path}: expected a run that reads forward or backward, found {run.direction}")
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
        alike = ", ".join(str(partner.path) for partner in partners)
        return f"expected one run of the other direction, found {len(partners)} that are alike: {alike}"
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
