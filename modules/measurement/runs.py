"""Which runs a measurement consists of, and their training.

A measurement of a config is 2 x seeds runs, each an ordinary run with its own config file, state and metrics: it can be
watched, stopped and gone on with like any other, and what is finished is used as it is. The derived configs are written
beside the states (`<state_save_loc>/<project>/configs/`), so that each run can be repeated by itself.

They are trained one after the other, or several at a time (side_by_side.py).
"""

import sys
from collections.abc import Sequence

from modules.config import Config, load_config
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
