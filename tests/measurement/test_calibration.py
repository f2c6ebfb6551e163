"""Small versions of benchmarks/calibration.py: the instrument shown sources whose answer is known."""

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import calibration
from configs.make_configs import small_gpt
from modules.config import parse_config
from modules.corpora import synthetic as sources
from modules.measurement import arrow
from modules.system.errors import UserError


def test_no_false_arrows_on_a_reversible_source(tmp_path):
    """Eight measurements; an instrument of 95 % shows three false arrows in them once in 170 times, and these seeds
    always the same."""
    calibration.materials(tmp_path, real=False)
    jobs = [calibration.null_job("markov", run, tmp_path, n_seeds=3) for run in range(8)]
    found = [each for job in jobs for each in calibration.arrows(calibration.do(job, steps=50), n_seeds=3)]
    assert len(found) == 8 and sum(map(calibration.covers, found)) >= 6
    half_widths = [(each.percent.both[1] - each.percent.both[0]) / 2 for each in found]
    assert np.median(half_widths) < 1.5  # percent: it says something, too
    assert all(len(each.per_seed) == 3 for each in found)


def test_both_directions_come_within_one_percent_of_the_true_entropy_from_above():
    for row in calibration.entropy_rows(characters=400_000, steps=150):
        assert row["exact"] == pytest.approx(row["entropy"], rel=0.01)  # the held-out text is one of many
        for direction in ("forward", "backward"):
            assert row["exact"] < row[direction] < 1.01 * row["exact"]


@pytest.mark.slow
def test_a_circuit_has_a_strong_arrow_which_its_mirror_image_turns_round(tmp_path):
    line, toki = sources.linear_circuit_line(5), calibration.character_tokenizer(tmp_path)
    text = "".join(sources.linear_circuit(20_000, bits=5))
    found = []
    for number, shown in enumerate((text, text[::-1])):
        data = calibration.write_tokens(tmp_path / f"{number}.h5", shown, toki)
        settings = small_gpt(str(data), 257, 64, line, 32, 600, 600, 8, 2e-3, stride=line, valid_steps=10)
        config = parse_config({"model": "gpt"} | settings, "circuit")
        found.append(arrow.measure(*calibration.measure(config, [number])))
    plain, mirrored = found
    assert plain.percent.value > 5 and plain.nats.windows[0] > 0
    assert mirrored.percent.value < -5 and mirrored.nats.windows[1] < 0
    easy = sources.linear_circuit_entropy(5)
    assert easy < plain.forward < 1.05 * easy and easy < mirrored.backward < 1.05 * easy


# Seeds
# ------------------------------------------------------------------------------------------------------------------


def test_no_seed_is_used_twice(tmp_path):
    jobs = [calibration.null_job(source, run, tmp_path) for source in calibration.NULLS for run in range(300)]
    jobs += [calibration.strong_job(source, seed, tmp_path) for source in calibration.STRONG for seed in range(30)]
    seeds = [seed for job in jobs for seed in job.seeds] + [
        seed for name in calibration.ENTROPIES for seed in calibration.numbers_of(name)
    ]
    assert len(seeds) == len(set(seeds)) and len({job.path for job in jobs}) == len(jobs)
    null_texts = [(job.source, job.text_number) for job in jobs if job.source in calibration.NULLS]
    assert len(set(null_texts)) == len(null_texts)


@given(total=st.integers(1, 9), n_seeds=st.integers(1, 9))
def test_arrows_of_fewer_seeds_share_none(total, n_seeds):
    """A seed is told by its loss: of two arrows of one measurement, none has a seed of the other."""
    losses = {
        "forward": np.tile(np.arange(1, total + 1.0)[:, None], 20),
        "backward": np.tile(np.arange(2, total + 2.0)[:, None], 20),
    }
    seeds = [{each.forward for each in found.per_seed} for found in calibration.arrows(losses, n_seeds)]
    assert len(seeds) == total // n_seeds and all(len(each) == n_seeds for each in seeds)
    assert all(one.isdisjoint(other) for one, other in combinations(seeds, 2))


# What stays
# -------------------------------------------------------------------------------------------------------------


def arrow_of_losses(seeds: int, arrow_in_nats: float, random: np.random.Generator) -> dict:
    """What a job keeps, of a made-up measurement with this arrow."""
    forward = 1 + 0.01 * random.standard_normal((seeds, 200))
    return {
        "forward": forward,
        "backward": forward + arrow_in_nats + 0.01 * random.standard_normal((seeds, 200)),
        "seconds": np.array(10.0),
    }


def keep(job: calibration.Job, losses: dict) -> None:
    """A file as `do` writes it."""
    config = calibration.config_of(job.source, Path("any.h5"), folds=job.folds)
    np.savez(job.path, **losses, settings=calibration.settings_of(config))


def test_folds_are_measurements_of_their_own(tmp_path):
    random = np.random.default_rng(1)
    for run in range(4):
        losses = arrow_of_losses(5, 0.0, random)
        keep(calibration.null_job("iid", run, tmp_path, folds=True), losses)
        (found,), (alike,) = (calibration.arrows(losses, 5, folds) for folds in (True, False))
        assert found.n_windows == 5 * alike.n_windows
    rows = [line for line in calibration.null(4, tmp_path, folds=True).splitlines() if "independent" in line]
    assert [row.split("|")[2].strip() for row in rows[:3]] == ["2", "3", "5"]
    assert "independent" not in calibration.null(4, tmp_path, folds=False)


def test_tables_count_what_is_there_and_train_nothing(tmp_path):
    """The program shows losses made by the test: of 10 measurements of one source, two have an arrow; and a strong
    source of 3 seeds."""
    random = np.random.default_rng(0)
    for run in range(10):
        keep(calibration.null_job("iid", run, tmp_path), arrow_of_losses(8, 0.5 if run in (3, 7) else 0.0, random))
    for source, sign in (("circuit", 1), ("circuit_mirrored", -1)):
        for seed in range(3):
            keep(calibration.strong_job(source, seed, tmp_path), arrow_of_losses(1, sign * 0.25, random))
    before = sorted(tmp_path.iterdir())
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.calibration", "--show", "--folder", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert sorted(tmp_path.iterdir()) == before
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines() if line.startswith("| ")
    ]
    of_iid = {row[1]: row for row in rows if row[0] == "independent tokens"}
    assert of_iid["1"][2] == "no verdict"
    for n, total in (("2", 40), ("3", 20), ("5", 10), ("8", 10)):
        count, whole = re.match(r"(\d+) of (\d+), ", of_iid[n][2]).groups()
        assert (
            int(whole) == total and 0.6 <= int(count) / total <= 0.8
        )  # two of ten have an arrow; one of ten may miss zero by chance
    assert not any("reversible" in row[0] for row in rows)
    circuit, mirrored = (
        next(row for row in rows if row[0] == title and row[1] == "3")
        for title in ("circuit over F2, 10 bits", "the same, mirrored")
    )
    assert float(circuit[5]) == pytest.approx(0.25, abs=0.01) and float(mirrored[5]) == pytest.approx(-0.25, abs=0.01)
    turns, stays = (next(row for row in rows if row[1] == half) for half in ("turns round with the text", "does not"))
    assert float(turns[2]) == pytest.approx(0.25, abs=0.01) and float(stays[2]) == pytest.approx(0, abs=0.01)
    assert float(turns[4]) < 0.05 < float(stays[4])


def test_a_measurement_that_is_there_is_not_trained_again_unless_its_settings_differ(tmp_path):
    job = calibration.null_job("iid", 0, tmp_path, n_seeds=1)
    assert calibration.kept(job) is None
    calibration.materials(tmp_path, real=False)
    done = calibration.do(job, steps=5)
    with pytest.raises(UserError, match="name another --folder"):  # 5 steps are not those of the program
        calibration.kept(job)
    keep(job, {name: done[name] for name in ("forward", "backward", "seconds")})
    at = job.path.stat().st_mtime_ns
    calibration.do_all([job], 1)
    assert job.path.stat().st_mtime_ns == at
    np.testing.assert_array_equal(calibration.kept(job)["backward"], done["backward"])
