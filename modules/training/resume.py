"""What a run resumes from: where its files are, which state is the newest whole one, and whether the config goes on
with it.

What decides a run's result is either part of its identity (another is refused) or a setting, which may change by intent
(refused unless `--accept_changes`, and then recorded in the state); the config's fields say which (fields.py). Whatever
only says where or how fast a run goes may change freely.

    <state_save_loc>/<project>/state/<run>.state      the state
                               state/<run>.sharded/   its shards, where the model is sharded
                               state/backups/         backups, with the step in their names
                               metrics/<run>.jsonl    every logged number
                               state/<run>.lock       held by the process that trains it
                               metrics/<run>.png .svg the loss curve so far
                               validations/<run>/     the held-out loss of each window at each validation
                               configs/, logs/        of runs that measure_arrow.py derived and trained side by side
                               slurm/                 scripts for a cluster (measure_arrow.py --commands slurm)
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from modules.config import HELD_OUT, RUN_NAME, Config, parse_config
from modules.data.token_file import TokenFile
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.names import check_name
from modules.training import checkpoint
from modules.training.checkpoint import InitialWeights
from modules.training.history import Precision, Stage, stage_of
from modules.training.sharded import export_sharded, sharded_facts, whole_sharded

DATA = "the data's fingerprint"
INITIAL = "training_params.init_from, whose weights have the fingerprint"


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

    @property
    def picture(self) -> Path:
        """The curve of the loss, without the suffix of its kind."""
        return self.folder / "metrics" / self.run_name

    @property
    def validations(self) -> Path:
        return self.folder / "validations" / self.run_name


def files_of(config: Config, project: str) -> Files:
    """The files of the run of this config. UserError where its name or the project's would lead elsewhere, or
    nowhere."""
    folder = Path(config.runs_folder) / check_name(project, "the project's name (-p)")
    return Files(folder, check_name(config.name, RUN_NAME))


def find_state(files: Files) -> dict | None:
    """The newest state of a run, plain or sharded (then with "folder" in place of its tensors); None where there is
    none.

    Raises UserError where it is damaged, naming the backup to go on from.
    """
    found = None
    if files.state.exists():
        try:
            found = checkpoint.load_state(files.state)
        except checkpoint.DamagedState as error:
            raise UserError(f"{error}; {way_out(files.state)}") from None
    folder = whole_sharded(files.state)
    if folder is not None:
        facts = checkpoint.check_facts(sharded_facts(folder), str(folder))
        if found is None or facts["step"] > found["step"]:
            found = facts | {"folder": folder}
    return found


def source_of(found: dict, files: Files) -> Path:
    """Where a state that `find_state` gave came from."""
    return found.get("folder", files.state)


def way_out(state: Path) -> str:
    """What to do about a damaged state: the newest backup that is whole."""
    for backup in checkpoint.backups_of(state):
        with contextlib.suppress(UserError):
            step = checkpoint.load_state(backup)["step"]
            found = f"the newest whole backup is of step {step:,}"
            return f"{found}: to go on from it, replace the state by a copy of {backup}"
    return "there is no whole backup; to start anew, move the state away"


def check_same_run(
    found: dict, config: Config, token_file: TokenFile, files: Files, initial: InitialWeights | None = None
) -> None:
    """Refuse a state that the run of `config` cannot have left: another model, order of reading or of windows, data,
    held-out part or weights to begin with."""
    there = parse_config(found["config"], found["run"], source=str(source_of(found, files)))
    held_out_tokens, data = found["held_out_tokens"], found["dataset"]["fingerprint"]
    # Held-out windows by the state: earlier versions counted them in another way.
    began = found.get("initial_weights")
    before = there.identity() | {HELD_OUT: held_out_tokens // there.model_params.context, DATA: data}
    before |= {INITIAL: began and began["fingerprint"]}
    now = config.identity() | {DATA: data if token_file.matches(data) else token_file.fingerprint}
    now |= {INITIAL: initial and initial.fingerprint}
    different = [
        f"{name} {before.get(name)} there and {now.get(name)} in the config"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if different:
        keep = (
            f"set training_params.held_out_tokens to {held_out_tokens} to keep what this run holds out, "
            if before[HELD_OUT] != now[HELD_OUT]
            else ""
        )
        raise UserError(
            f"{source_of(found, files)}: a state of another run: {'; '.join(different)}; {keep}train under another "
            "name (--run_name), or move the state away"
        )


def cooldown_under_way(found: dict | None) -> tuple[int, int] | None:
    """The first step and the length of the cool-down that the state is in."""
    if found is None:
        return None
    cooldown = stages_of(found)[-1].optim_params.cooldown
    return cooldown if cooldown and cooldown[0] < found["step"] else None


def cooldown_asked(asked: int | None, found: dict | None, config: Config) -> int | None:
    """The steps of the cool-down that is asked for: where `asked` is 0, those of the one that the state is in, or as
    many as make the config's share of all steps. UserError where that says nothing."""
    if asked != 0:
        return asked
    if under_way := cooldown_under_way(found):
        return under_way[1]
    step, share = found["step"] if found else 0, config.training_params.cooldown_finish
    if share is None or step == 0:
        why = "the config has no training_params.cooldown_finish" if share is None else "nothing is trained yet"
        raise UserError(f"{config.name}: --cooldown: expected a number of steps, as {why}")
    return max(1, round(step * share / (1 - share)))


def with_cooldown(config: Config, asked: int | None, found: dict | None, files: Files) -> Config:
    """`config` with the cool-down that is asked for, or that the state is in. UserError for one that the state's would
    have to be undone for."""
    under_way = cooldown_under_way(found)
    if found and under_way and asked not in (None, under_way[1]):
        start, length = under_way
        raise UserError(
            f"{source_of(found, files)}: cools down from step {start:,} to {start + length:,} already: --cooldown "
            f"{length} ends it; to go on at the full rate or with another cool-down, {full_rate(files, start)}"
        )
    if asked or (under_way and config.optim_params.cooldown is None):
        start, length = under_way or (found["step"] if found else 0, asked)
        return config.with_optim(cooldown_start=start, cooldown_steps=length)
    return config


def check_same_settings(found: dict, config: Config, tf32: bool | None, accept_changes: bool, files: Files) -> None:
    """Refuse another learning rate, schedule, optimizer or precision than the state's, unless `accept_changes`. A
    cool-down that lies ahead may come, go or move.

    tf32: whether the run would go on with fp32 in TF32; None where it has ended, on whatever device.
    """
    stage, step = stages_of(found)[-1], found["step"]
    now = stage_of(config, wanted_precision(config, stage), tf32, step)
    here = config.settings() | {"precision": now.arithmetic(stage)}
    there = stage.optim_params.model_dump() | {"precision": stage.arithmetic(now)}
    cooldown = config.optim_params.cooldown
    if not cooldown_under_way(found) and (cooldown is None or cooldown[0] >= step):
        for params in (here, there):  # no step has been affected by it
            del params["cooldown_start"], params["cooldown_steps"]
    different = [
        f"{key} {there[key]} up to step {step:,} and {here[key]} in the config"
        for key in here
        if here[key] != there[key]
    ]
    if different and not accept_changes:
        raise UserError(
            f"{source_of(found, files)}: was trained with other settings: {'; '.join(different)}; put them back, train "
            f"under another name (--run_name), or go on with them from step {step:,} by --accept_changes, which the "
            "state records"
        )


def full_rate(files: Files, step: int) -> str:
    """Where the state before a cool-down that began at `step` is to be had."""
    backup = checkpoint.backup_path(files.state, step)
    return f"replace the state by a copy of {backup}" if backup.exists() else f"take a state of step {step:,} or before"


def wanted_precision(config: Config, stage: Stage) -> Precision:
    """The precision in which a run goes on: what the config asks for, or as before."""
    asked = config.training_params.precision
    return stage.precision if asked == "auto" else asked


def stages_of(found: dict) -> list[Stage]:
    return [Stage.model_validate(stage) for stage in found["stages"]]


def keep_before_cooldown(found: dict, start: int, files: Files) -> None:
    """Keep the state from which a cool-down starts as a backup: a cooled run cannot go on."""
    if found["step"] == start:
        keep_backup(found, files)


def keep_backup(found: dict, files: Files) -> None:
    """Keep the state `found` as the backup of its step, where there is none."""
    backup = checkpoint.backup_path(files.state, found["step"])
    if not backup.exists():
        write_plain(found, files, backup)


def make_up(found: dict, config: Config, done: bool, files: Files) -> None:
    """Make what a kill kept from being made: a backup, the plain state of a finished sharded run. Of a finished one,
    remember where the data are now."""
    backup_due = found["step"] > 0 and found["step"] % config.training_params.backup_every == 0
    if (
        backup_due and found["validated"] == found["step"]
    ):  # else the step's checkpoint is still owed, and brings its backup
        keep_backup(found, files)
    if not done:
        return
    if "folder" in found:
        write_plain(found, files, files.state)
        found = checkpoint.load_state(files.state)
    if not same_file(parse_config(found["config"], found["run"]).dataset_path, config.dataset_path):
        data_path = {"dataset_folder": config.training_params.dataset_folder}
        there = found["config"]
        checkpoint.save_state(
            found | {"config": there | {"training_params": there["training_params"] | data_path}}, files.state
        )


def write_plain(found: dict, files: Files, path: Path) -> None:
    """Write the state `found` to `path` as a plain one."""
    if "folder" in found:
        export_sharded(found["folder"], path)
    else:
        with replacing(path) as temporary:
            shutil.copyfile(files.state, temporary)


def same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file that is there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
