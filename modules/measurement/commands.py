"""The runs of a measurement as commands, for machines other than this one: a cluster's, or a queue of one's own.

Each is complete: it begins in this folder, and names a config file that is written for it. A run that is finished is
left alone, with status 0, and one that another process holds with status 75, so that all of them can be started again
until all have ended well; then the command that compares them gives the report.
"""

import math
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from modules.config import Config
from modules.models import count_parameters
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.training.devices import gpus_here, in_words, pick_device
from modules.training.dry_run import STEPS_OF_A_TRIAL, duration
from modules.training.memory import GIB
from modules.training.placement import estimated_need
from modules.training.resume import files_of
from modules.training.run import PROJECT_FOLDER, Request
from modules.training.side_by_side import training_command
from modules.training.trial import try_out

TRAIN_SCRIPT = PROJECT_FOLDER / "train_script.py"
USUAL_HOURS = 24  # that a run is given where its time is not measured
CHEAP_FLOPS = 3e12  # a minute of one core; the time of larger runs is not measured on a CPU
CPUS = 4  # for each run: one prepares batches, one drives the GPU
GRACE_SECONDS = 120  # to finish a step and save, before the cluster ends a run

SBATCH = """#!/bin/bash
#SBATCH --job-name={name}
{lines}
cd -- {here} || exit 1
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
{body}
"""


def run_commands(runs: Sequence[Config], request: Request, device_name: str | None) -> list[str]:
    """A shell command for each run, in one line. Their config files are written."""
    return [from_here(training_command(TRAIN_SCRIPT, config, request, device_name)) for config in runs]


def compare_command(runs: Sequence[Config], request: Request, arguments: Namespace) -> str:
    """The shell command that compares the runs when all have ended. arguments: of measure_arrow.py, as it parsed
    them."""
    named = {"--device": arguments.device, "--tokenizer_path": arguments.tokenizer_path, "--out": arguments.out}
    options = [f"{flag}={value}" for flag, value in named.items() if value is not None]
    options += [f"--reference={arguments.reference}", *["--save_losses"] * arguments.save_losses]
    options += ["--text", *map(no_option, arguments.text)] if arguments.text else []
    states = [no_option(str(files_of(run, request.project).state)) for run in runs]
    return from_here([sys.executable, str(PROJECT_FOLDER / "measure_arrow.py"), *options, "--states", *states])


def no_option(path: str) -> str:
    """The same path, so that no script takes it for one of its options."""
    return f"./{path}" if path.startswith("-") else path


def from_here(command: Sequence[str]) -> str:
    """As a line of shell that works in any folder. UserError where a name has a line end in it."""
    line = f"cd -- {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
    if "\n" in line:
        raise UserError(f"--commands: expected names without line ends, as a command is a line, found {line!r}")
    return line


# SLURM
# ---------------------------------------------------------------------------------------------------------------


def write_sbatch(runs: Sequence[Config], request: Request, device_name: str | None, compare: str) -> str:
    """Write the script of an array of all runs, and that of the job that compares them; the line that submits both."""
    folder = Path.cwd() / files_of(runs[0], request.project).folder
    commands = [training_command(TRAIN_SCRIPT, config, request, device_name) for config in runs]
    from_here([part for command in commands for part in command])  # the names may have no line ends
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    configs = "\n".join(f"    {shlex.quote(command[-1])}" for command in commands)
    body = f"configs=(\n{configs}\n)\n"
    body += f'exec {shlex.join(commands[0][:-1])} "${{configs[$SLURM_ARRAY_TASK_ID]}}"'
    array = [f"#SBATCH --array=0-{len(runs) - 1}", *time_lines(runs, device_name)]
    shared = machine_lines(runs, device_name)
    texts = {
        "runs": ([*array, *shared, output_line(folder, "%A_%a")], body),
        "compare": (["#SBATCH --time=01:00:00", *shared, output_line(folder, "%j")], compare),
    }
    paths = {}
    for name, (lines, script) in texts.items():
        paths[name] = folder / "slurm" / f"{name}.sbatch"
        text = SBATCH.format(
            name=f"arrow-{name}", lines="\n".join(lines), here=shlex.quote(str(Path.cwd())), body=script
        )
        with replacing(paths[name]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    first, second = (shlex.quote(str(paths[name])) for name in texts)
    return (
        f"job=$(sbatch --parsable {first}) && "
        f'sbatch --dependency="afterok:${{job%%;*}}" --kill-on-invalid-dep=yes {second}'
    )


def machine_lines(runs: Sequence[Config], device_name: str | None) -> list[str]:
    """What each job needs of a machine."""
    memory = math.ceil(max(map(estimated_need, runs)) / GIB) + 2
    gpu = [] if device_name == "cpu" else ["#SBATCH --gres=gpu:1"]
    return [
        *gpu,
        f"#SBATCH --cpus-per-task={CPUS}",
        f"#SBATCH --mem={memory}G",
        "# So long before its time is over a run saves and stops; submitted again, it goes on.",
        f"#SBATCH --signal=B:TERM@{GRACE_SECONDS}",
    ]


def output_line(folder: Path, number: str) -> str:
    """Where a job's output goes; in names of files SLURM reads % and backslashes."""
    path = str(folder / "logs").replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'#SBATCH --output="{path}/slurm-{number}.out"'


def time_lines(runs: Sequence[Config], device_name: str | None) -> list[str]:
    """How long each run may take: twice what the largest is expected to, from a few of its steps, where the device is
    at hand and that is soon done."""
    largest = max(runs, key=flops_a_step)
    device = pick_device(device_name) if device_name == "cpu" or gpus_here(device_name) else None
    if device is None or (device.type == "cpu" and STEPS_OF_A_TRIAL * flops_a_step(largest) > CHEAP_FLOPS):
        why = "there is no GPU here" if device is None else "the largest run is large for this CPU"
        return [
            f"# Not measured, as {why}: edit it; train_script.py --dry_run tells the time, where it is to be trained.",
            f"#SBATCH --time={USUAL_HOURS:02}:00:00",
        ]
    trial = try_out(largest, device_name)
    expected = trial.seconds * trial.steps
    minutes = 10 * math.ceil((2 * expected / 60 + 10) / 10)
    days, rest = divmod(minutes, 24 * 60)
    return [
        f"# Twice the {duration(expected)} that {largest.name}, the largest, is expected to take on {in_words(device)}",
        f"#SBATCH --time={days}-{rest // 60:02}:{rest % 60:02}:00",
    ]


def flops_a_step(config: Config) -> float:
    """Multiplications and additions of a step, about."""
    parameters = count_parameters(config.trained_model, **config.model_arguments)
    return 6.0 * parameters * config.step_windows * config.model_params.context
