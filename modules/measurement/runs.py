"""Which runs a measurement consists of, and their training.

A measurement of a config is orders x seeds runs, by default in the orders forward and backward, each an ordinary run
with its own config file, state and metrics: it can be watched, stopped and gone on with like any other, and what is
finished is used as it is. The derived configs are written beside the states (`<state_save_loc>/<project>/configs/`),
so that each run can be repeated by itself.

They are trained one after the other, or several at a time (side_by_side.py).
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from modules.config import Config, load_config
from modules.data.orders import BACKWARD, FORWARD, Reading, in_run_name, name_of, orders_of, positions
from modules.data.token_file import open_tokens
from modules.measurement.comparison import Measurement
from modules.measurement.control import control_of, control_run, why_none
from modules.measurement.noise import next_seeds
from modules.measurement.pairing import base_name
from modules.models import GPTParams
from modules.system.console import tell
from modules.system.errors import UserError
from modules.training.parallel import joined
from modules.training.resume import files_of
from modules.training.run import Request, run

# The .h5 of a control by that of the data, and whether its runs begin with new weights; None where there is none.
Controls = dict[tuple[str, bool], Path | None]
OTHER_TOKENS = "training_params.init_from has weights of the text's tokens, and the control's are others"


def planned_runs(
    config_paths: Sequence[str], seeds: int, orders: Sequence[str] = (), reference: str = FORWARD
) -> list[Config]:
    """The runs that the measurement of these configs consists of: each in all orders, for `seeds` seeds of each.

    orders: as `--orders` has them: names as in a config, positions as JSON ("[2, 0, 1]"), "both", or several for one
    model with + between them. The reference is trained too where another has models of its own. Without any they are
    forward and backward, of which a config may say either (both files of a pair are one measurement), or the reference
    and the order that the config says.

    The order in a config's name is left out, and takes its place before the seed. Seeds count up from the config's
    own. Raises UserError where two configs of one name differ, and where an order is none.
    """
    runs = {}
    configs = [(path, with_known_model(load_config(path), path)) for path in config_paths]
    changes_of = {path: changes_for(config, orders, reference) for path, config in configs}
    for number in range(seeds):  # outermost: all of a sweep is there, with few seeds, before any of it has many
        for path, config in configs:
            seed, base = config.training_params.seed + number, base_name(config.name, config.orders)
            for order, changes in changes_of[path].items():
                name = f"{base}_{order}_seed{seed}"
                one = config.with_training(**changes, seed=seed).with_name(name)
                if runs.setdefault(name, one) != one:
                    raise UserError(f"{path}: another config given here has the same name but differs; rename one")
    return list(runs.values())


def changes_for(config: Config, said: Sequence[str], reference: str) -> dict[str, dict[str, object]]:
    """What makes a config one of each of the orders to measure, by the order's word in the names of runs."""
    length = config.model_params.context
    own = config.training_params.order
    wanted = list(map(read_order, said)) or (
        [FORWARD, BACKWARD] if own is None or config.orders in ((FORWARD,), (BACKWARD,)) else [own]
    )
    try:
        (compared_to,) = orders_of(reference, length)
        readings = [(orders_of(each, length), each) for each in wanted]
    except ValueError as error:
        raise UserError(f"{config.name}: --orders, --reference: {error}") from None
    if any(len(orders) == 1 for orders, _ in readings) and (compared_to,) not in [orders for orders, _ in readings]:
        readings.insert(0, ((compared_to,), reference))
    if [orders for orders, _ in readings] == [(compared_to,)]:
        raise UserError(f"--orders: expected an order to compare to {name_of(compared_to)}, found it alone")
    found, seen = {}, {}
    for orders, value in readings:
        if len(orders) > 1 and compared_to not in orders:
            raise UserError(
                f"--orders: expected {name_of(compared_to)}, to which others are compared, among the orders of one "
                f"model, found {Reading(orders).name}"
            )
        same = seen.setdefault(as_read(orders, length), orders)
        if same is not orders:
            raise UserError(f"--orders: {Reading(same).name} and {Reading(orders).name} are the same order")
        is_direction = orders in ((FORWARD,), (BACKWARD,))
        found[in_run_name(orders)] = {"backwards": orders == (BACKWARD,)} if is_direction else {"order": value}
    return found


def read_order(text: str) -> str | list:
    """An order from the command line, as a config would have it. UserError where it begins like a list and is none."""
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise UserError(f"--orders: expected positions such as [2, 0, 1], found {text[:40]}") from None
    several = re.split(r"\+(?=[a-z])", text)  # a number may have a plus sign
    return text if len(several) == 1 else several


def as_read(orders: Sequence, length: int) -> tuple:
    """What tells these orders of a model from others under whatever names: their positions."""
    return tuple(order if Reading((order,)).is_fresh else positions(order, length).tobytes() for order in orders)


def with_controls_of(
    runs: Sequence[Config], project: str, wanted: bool | None, controls: Controls | None = None
) -> list[Config]:
    """The runs, each followed by the same on its reversed control, which is made where it is not there.

    wanted: True refuses data that can have none, None leaves their control out and says so, False leaves all out.
    controls: those of calls before, by what they are the control of; these are added.
    """
    if wanted is False:
        return list(runs)
    planned, controls = [], {} if controls is None else controls
    for each in runs:
        key = each.dataset_path, each.training_params.init_from is None
        if key not in controls:
            token_file = open_tokens(each.dataset_path)
            reason = why_none(token_file) if each.training_params.init_from is None else OTHER_TOKENS
            if reason is not None and wanted and not token_file.symmetric:
                raise UserError(f"{each.dataset_path}: has no control to train: {reason}")
            if reason is not None:
                tell(f"{each.dataset_path}: no control is trained: {reason}", sys.stderr)
            controls[key] = None if reason else control_of(token_file, files_of(each, project).folder / "control")
        control = controls[key]
        planned += [each] if control is None else [each, control_run(each, control)]
    return planned


def seeds_after(measurements: Sequence[Measurement], half_width: float, most: int) -> int:
    """How many seeds to have before it is looked again whether the intervals reach `half_width` percent to either side;
    the present number to stop."""
    return max(next_seeds(each.estimate.noise, half_width, most) for each in measurements if each.is_of_a_text)


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
