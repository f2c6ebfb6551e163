"""What a run resumes from: where its files are, which state is the newest whole one, and whether it is this run's.

    <state_save_loc>/<project>/state/<run>.state      the state
                               state/<run>.sharded/   its shards, where the model is sharded
                               state/backups/         backups, with the step in their names
                               metrics/<run>.jsonl    every logged number
                               metrics/<run>.png      the loss curve so far
"""
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from modules import checkpoint
from modules.config import Config
from modules.dataset import open_tokens
from modules.errors import UserError
from modules.files import replacing
from modules.parallel import Processes


@dataclass(frozen=True)
class Files:
    """Where a run's files are."""
    folder: Path
    run_name: str

    @property
    def state(self) -> Path:
        return self.folder / "state" / f"{self.run_name}.state"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics" / f"{self.run_name}.jsonl"


def files_of(config: Config, project: str) -> Files:
    """The files of the run of this config."""
    return Files(Path(config.runs_folder) / project, config.name)


def find_state(files: Files) -> dict | None:
    """The newest state of a run, plain or sharded (then with "folder" in place of its tensors); None where there is none.

    Raises UserError where it is damaged, naming the backup to go on from.
    """
    found = None
    if files.state.exists():
        try:
            found = checkpoint.load_state(files.state)
        except UserError as error:
            raise UserError(f"{error}; {way_out(files.state)}") from None
    folder = checkpoint.whole_sharded(files.state)
    if folder is not None:
        facts = checkpoint.sharded_facts(folder)
        if found is None or facts["step"] > found["step"]:
            found = facts | {"folder": folder}
    return found


def way_out(state: Path) -> str:
    """What to do about a damaged state: the newest backup that is whole."""
    for backup in checkpoint.backups_of(state):
        with contextlib.suppress(UserError):
            step = checkpoint.load_state(backup)["step"]
            return f"the newest whole backup is of step {step:,}: to go on from it, replace the state by a copy of {backup}"
    return "there is no whole backup; to start anew, move the state away"


def check_same_run(found: dict, config: Config, files: Files) -> None:
    """Refuse a state that the run of `config` cannot have left: another model, direction, seed, or order of windows."""
    before, now = found["config"], config.to_dict()

    def step_windows(config: dict) -> int:
        return config["training_params"]["batch_size"] * config["training_params"]["aggregate"]

    compared = [(f"model_params.{key}", before["model_params"].get(key), now["model_params"].get(key))
                for key in sorted(before["model_params"].keys() | now["model_params"].keys())]
    compared += [(f"training_params.{key}", before["training_params"][key], now["training_params"][key]) for key in ("backwards", "seed", "stride")]
    compared += [("model", before["model"], now["model"]),
                 ("training_params.batch_size x aggregate", step_windows(before), step_windows(now)),
                 ("the data's fingerprint", found["dataset"]["fingerprint"], open_tokens(config.dataset_path).fingerprint)]
    different = [f"{name} {was} there and {wanted} in the config" for name, was, wanted in compared if was != wanted]
    if different:
        raise UserError(f"{files.state}: a state of another run: {'; '.join(different)}; train under another name (--run_name), or move the state away")


def cooled_down(config: Config, steps: int, found: dict | None, files: Files, processes: Processes) -> Config:
    """`config` with a cool-down of `steps` from the state's step on, or from where an interrupted one of as many began.

    What was trained before is kept as a backup: a cooled run cannot go on.
    """
    began = found and found["config"]["optim_params"]
    if began and began["cooldown_steps"] == steps:
        return config.with_optim(cooldown_start=began["cooldown_start"], cooldown_steps=steps)
    if found and processes.is_main and files.state.exists():
        with replacing(checkpoint.backup_path(files.state, found["step"])) as temporary:
            shutil.copyfile(files.state, temporary)
    return config.with_optim(cooldown_start=found["step"] if found else 0, cooldown_steps=steps)
