"""Who may be compared with whom: the runs behind states, and what they must agree in.

The arrow is one percent of the loss, so a comparison of runs that differ in anything but their order of reading is
worth nothing, and is refused with the first things that differ. What must agree is what the config's fields are marked
with (fields.py), the data and the tokenizer by their fingerprints (not by their paths), and the steps done. What each
step was trained with (learning rate, optimizer, precision) is compared step by step, as it was and not as the last
config says (history.py). What only says where or how fast a run went (folders, logging, devices, micro-batches) may
differ.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modules.config import HELD_OUT, Config, parse_config
from modules.data.orders import FORWARD, Order, in_run_name, name_of
from modules.data.token_file import TokenFile, same_dataset
from modules.exchange.authors import UNKNOWN
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
    data are now. number: which of the orders in which its model reads is meant.
    """

    path: Path
    config: Config
    state: dict
    parameters: int
    data_path: str
    number: int = 0

    @property
    def order(self) -> str:
        """The order that is meant: "forward", "chunks:8" ..."""
        return name_of(self.config.orders[self.number])

    @property
    def in_one_model(self) -> str | None:
        """All orders of its model, "forward + backward"; None where there is one."""
        return self.config.order if len(self.config.orders) > 1 else None

    def in_each_order(self) -> list["Trained"]:
        return [replace(self, number=number) for number in range(len(self.config.orders))]

    @property
    def seed(self) -> int:
        return self.config.training_params.seed

    @property
    def name(self) -> str:
        """The run's name without order and seed: the runs of all orders and seeds share it."""
        return base_name(self.config.name, self.config.orders)

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


def base_name(run_name: str, orders: Sequence[Order] = ()) -> str:
    """A run's name without its order, one of `orders`, and its seed: "demo_forward_seed0" and "demo_backward" as
    "demo", for orders ["even_odd"] also "demo_even_odd"."""
    own = f"|{re.escape(in_run_name(orders))}" if orders else ""
    return re.sub(rf"_(forward|backward{own})(?=_|$)|_seed\d+$", "", run_name)


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
        data_path=next((each.path for each in moved if each.matches(recorded)), config.dataset_path)
        if recorded != UNKNOWN
        else given_data(path, config, moved),
    )


def given_data(path: Path, config: Config, given: Sequence[TokenFile]) -> str:
    """The data of a state that does not know them: those that were given, of several the one of the recorded name, of
    none what lies where the state says. UserError where that leaves a choice."""
    name = Path(config.training_params.dataset_folder).name
    named = [each.path for each in given if Path(each.path).name == name] or [each.path for each in given]
    if len(named) > 1:
        raise UserError(
            f"{path}: does not record its data's fingerprint: expected one --data, or one called {name}, found "
            f"{len(named)}"
        )
    return named[0] if named else config.dataset_path


def facts(run: Trained) -> dict[str, Any]:
    """All that must be equal in two orders, by the name under which a difference is reported."""
    identity = run.config.identity()
    del identity["training_params.order"]
    data, initial = run.state["dataset"]["fingerprint"], run.state.get("initial_weights")
    return identity | {
        "data": data if data != UNKNOWN else run.data_path,
        "tokenizer": run.state["dataset"]["tokenizer_fingerprint"],
        "steps trained": run.state["step"],
        "initial weights": initial and (initial["family"] or initial["fingerprint"]),
        HELD_OUT: run.held_out_windows,  # by the state: earlier versions counted them in another way
    }


def differences(one: Trained, other: Trained, but: Sequence[str] = ()) -> list[str]:
    """What the two runs differ in beside their orders and what is named in `but`; empty where a comparison of them is
    fair."""
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


def pair_up(runs: Sequence[Trained], reference: str = FORWARD) -> list[list[tuple[Trained, Trained]]]:
    """Groups of fair pairs (a run that reads in the order `reference`, one of another order): in a group the pairs have
    the same two orders and differ in their seed only, in order of seed. A model of several orders is paired with
    itself.

    Raises UserError where a run has no fair partner, or more than one of an order.
    """
    groups: list[list[tuple[Trained, Trained]]] = []
    for pair in pairs_of(runs, reference):
        group = next((group for group in groups if differ_in_seed(group[0], pair)), None)
        if group is None:
            groups.append(group := [])
        group.append(pair)
    return [sorted(group, key=lambda pair: pair[0].seed) for group in groups]


def differ_in_seed(one: tuple[Trained, Trained], other: tuple[Trained, Trained]) -> bool:
    """Whether the two pairs have the same two orders, and differ in their seed at most."""
    orders = [(*(run.order for run in pair), pair[0].in_one_model) for pair in (one, other)]
    return orders[0] == orders[1] and not differences(one[0], other[0], but=["training_params.seed"])


def pairs_of(runs: Sequence[Trained], reference: str) -> list[tuple[Trained, Trained]]:
    """All pairs; see `pair_up`."""
    found = []
    for run in runs:
        if run.in_one_model is None:
            partners = partners_of(run, runs, reference)
            found += [(run, partner) for partner in partners] if run.order == reference else []
            continue
        alike = [each for each in runs if each.in_one_model == run.in_one_model and not differences(run, each)]
        check_alone(run, run.in_one_model, alike)
        orders = {each.order: each for each in run.in_each_order()}
        if reference not in orders:
            raise UserError(
                f"{run.path}: a model that reads {run.in_one_model}: expected {reference} among its orders, to "
                "compare the others to; name one of them with --reference"
            )
        found += [(orders[reference], each) for order, each in orders.items() if order != reference]
    return found


def partners_of(run: Trained, runs: Sequence[Trained], reference: str) -> list[Trained]:
    """The runs with which one of a single order is compared: those of other orders where it is of the reference, else
    the one of the reference."""
    others = [
        each for each in runs if each.in_one_model is None and (each.order == reference) != (run.order == reference)
    ]
    partners = [other for other in others if not differences(run, other)]
    if not partners:
        raise UserError(f"{run.path}: {why_none(run, others, reference)}")
    for order in dict.fromkeys(partner.order for partner in partners):
        check_alone(run, order, [partner for partner in partners if partner.order == order])
    return partners


def check_alone(run: Trained, order: str, alike: Sequence[Trained]) -> None:
    """UserError where several runs of an order are alike, seed and all."""
    if len(alike) > 1:
        paths = ", ".join(str(each.path) for each in alike)
        raise UserError(f"{run.path}: expected one {order} run, found {len(alike)} that are alike: {paths}")


def why_none(run: Trained, others: Sequence[Trained], reference: str) -> str:
    """What keeps `run` from having a partner among `others`."""
    if not others:
        wanted = "run of another order" if run.order == reference else f"{reference} run"
        return f"reads {run.order}, but no {wanted} was given to compare it with"
    nearest = min(others, key=lambda other: len(differences(run, other)))
    different = differences(run, nearest)
    more = f" and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
    return (
        f"no fair comparison: {nearest.path}, the most similar run of another order, differs in "
        f"{', '.join(different[:SHOWN_DIFFERENCES])}{more}"
    )


def shown(value: object) -> str:
    """A fingerprint in short, a path whole."""
    return value[:12] if isinstance(value, str) and os.sep not in value else str(value)
