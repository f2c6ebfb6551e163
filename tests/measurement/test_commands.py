"""The commands of a measurement, run as a cluster or a queue runs them: by shells, at the same time, again."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import filelock
import pytest
import torch

from modules.config import parse_config
from modules.measurement import commands
from modules.measurement.commands import flops_a_step, time_lines
from modules.training.trial import Trial
from tests.measurement.test_control import config, dataset
from tests.measurement.test_measure import measure
from tests.toy import config_dict, write_config


def shell(line: str, cwd="/", **environment) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "-c", line],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate(timeout=240)[0]
    return process.returncode, said


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A measurement of two orders and their controls in a folder that shells have to be told of with care; what was
    printed, and what its commands said."""
    folder = tmp_path_factory.mktemp("on") / 'my $HOME\'s "runs" %j'
    folder.mkdir()
    data = dataset(folder)
    path = config(folder, data, "ti ny")
    written = json.loads(path.read_text())
    written["training_params"] |= {"save_every": 6, "state_save_loc": "runs"}  # from where the command is given
    path.write_text(json.dumps(written))
    before = Path.cwd()
    os.chdir(folder)
    try:
        asked = ["ti ny.json", "--seeds", 1, "-d", "cpu", "-t", "prose_tokenizer", "--save_losses"]
        printed = measure(*asked, "-p", "$p", "--commands")
        compare = measure(*asked, "-p", "$p", "--commands", "compare")
        with mock.patch.object(commands, "try_out", lambda config, device: Trial(1.0, 0.01, 6)):  # it has its own test
            slurm = measure(*asked, "-p", "$p", "--commands", "slurm")
        itself = measure(*asked, "-p", "itself")
    finally:
        os.chdir(before)
    assert printed.returncode == compare.returncode == slurm.returncode == itself.returncode == 0, printed.stderr
    runs = printed.stdout.splitlines()
    return folder, runs, compare.stdout, slurm.stdout, printed.stderr, [*map(ended, [*map(shell, runs)])]


def test_each_run_is_a_line_of_shell_that_works_anywhere(cluster):
    folder, runs, _, _, said, results = cluster
    assert len(runs) == 4 and [status for status, _ in results] == [0] * 4, results
    states = {path.stem for path in (folder / "runs" / "$p" / "state").glob("*.state")}
    assert states == {f"ti ny{which}_{order}_seed0" for which in ("", "_reversed") for order in ("forward", "backward")}
    assert "# 4 runs, in any order" in said


def test_the_runs_are_those_of_the_measurement_and_compare_alike(cluster):
    folder, _, compare, _, said, _ = cluster
    assert f"# {compare}" in said
    status, told = ended(shell(compare))
    assert status == 0 and "report: " in told, told
    here, itself = (folder / "runs" / project / "report" / "arrow.json" for project in ("$p", "itself"))
    one, other = (json.loads(path.read_text()) for path in (here, itself))
    assert one.pop("command") != other.pop("command")
    same = json.loads(json.dumps(one).replace(f"{folder}/runs/$p", "RUNS").replace("runs/$p", "RUNS"))
    assert same == json.loads(json.dumps(other).replace("runs/itself", "RUNS"))
    assert (here.parent / "losses.npz").exists()


def test_an_array_leaves_alone_what_is_finished_and_what_is_held(cluster):
    folder, _, compare, submit, _, _ = cluster
    runs = folder / "runs" / "$p" / "slurm" / "runs.sbatch"
    assert subprocess.run(["bash", "-n", runs]).returncode == 0
    with open(folder / "runs" / "$p" / "state" / "ti ny_forward_seed0.lock", "a") as lock:
        assert filelock.lock_descriptor(lock.fileno(), blocking=False)
        held, finished = (
            shell(f"bash {shlex.quote(str(runs))}", SLURM_ARRAY_TASK_ID=index, SLURM_CPUS_PER_TASK="1")
            for index in "02"
        )
        status, said = ended(held)
        assert status == 75 and said.count("\n") == 1 and "another process is training this run" in said
        status, said = ended(finished)
        assert (
            status == 0 and "ti ny_backward_seed0: nothing to do, step 6 of 6 is done" in said and "\n" not in said[:-1]
        )
    lines = [line for line in runs.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --array=0-3" in lines and not any("gres" in line for line in lines)
    assert any(re.fullmatch(r"#SBATCH --time=0-00:20:00", line) for line in lines), "measured: seconds"
    output = next(line for line in lines if "--output" in line)
    assert "%%j/runs/$p/logs/slurm-%A_%a.out" in output and '\\"runs\\"' in output
    afterwards = (folder / "runs" / "$p" / "slurm" / "compare.sbatch").read_text()
    assert compare in afterwards and "--array" not in afterwards


def test_the_line_that_submits_gives_both_jobs_to_sbatch(cluster, tmp_path):
    folder, _, _, submit, _, _ = cluster
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> asked; echo "42;cluster"\n')
    sbatch.chmod(0o755)
    status, said = ended(shell(submit, tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}"))
    assert status == 0, said
    scripts = folder / "runs" / "$p" / "slurm"
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--parsable",
        str(scripts / "runs.sbatch"),
        "--dependency=afterok:42",
        "--kill-on-invalid-dep=yes",
        str(scripts / "compare.sbatch"),
    ]


def test_a_reader_that_goes_away_costs_nothing(cluster):
    folder = cluster[0]
    command = shlex.join([shutil.which("python3") or "python3", "-c", "print()"])
    line = cluster[1][0].split(" && ")[1].replace("train_script.py", "measure_arrow.py")
    python, script = shlex.split(line)[:2]
    asked = shlex.join([python, script, "ti ny.json", "--seeds", "9", "--no_control", "-d", "cpu", "--commands"])
    status, said = ended(shell(f"set -o pipefail; {asked} 2>/dev/null | head -1; {command}", folder))
    assert status == 0 and said.count("ti ny_forward_seed0.json") == 1


@pytest.mark.parametrize(
    "options", [["--until", "0.2"], ["--jobs", "2"], ["--jobs", "auto"], ["--commands", "pbs"]], ids=" ".join
)
def test_what_only_training_here_can_do_is_refused(tmp_path, options):
    told = measure("nothing.json", "--commands", *options)
    assert told.returncode == 2 and told.stderr.startswith("error: ") and "--commands" in told.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_commands_are_printed_where_their_device_is_not(tmp_path):
    """A cluster's login node has no GPU."""
    told = measure(write_config(tmp_path), "--no_control", "--seeds", 1, "-d", "cuda:0", "--commands")
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) == 2 and all(" -d cuda:0 " in line for line in told.stdout.splitlines())


def test_a_line_end_in_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "two\nlines").mkdir()
    monkeypatch.chdir(folder)
    path = config(folder, dataset(folder))
    told = measure(path, "--seeds", 1, "--no_control", "--commands")
    assert told.returncode == 1 and "expected names without line ends" in told.stderr


def test_time_is_that_of_the_largest_run_where_it_is_at_hand(tmp_path, monkeypatch):
    small = parse_config(config_dict(tmp_path), "small").with_model("gpt")
    large = parse_config(config_dict(tmp_path, model_params__embed_dim=512), "large").with_model("gpt")
    huge = parse_config(config_dict(tmp_path, model_params__embed_dim=8192), "huge").with_model("gpt")
    assert flops_a_step(small) < flops_a_step(large) < flops_a_step(huge)
    monkeypatch.setattr(
        commands, "try_out", lambda config, device: Trial(1.0, 36.0, 10_000) if config is large else None
    )
    why, time = time_lines([small, large, small], "cpu")
    assert why.startswith("# Twice the 4 days, 4:00:00 that large, the largest, is expected to take on CPU")
    assert time == "#SBATCH --time=8-08:10:00", "twice 100 hours and ten minutes"
    for runs, device, reason in (([small, huge], "cpu", "large for this CPU"), ([small], None, "no GPU here")):
        why, time = time_lines(runs, device)
        assert reason in why and time == "#SBATCH --time=24:00:00"
