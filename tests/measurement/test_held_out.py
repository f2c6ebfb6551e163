"""Seeds that hold out a fold each: trained and measured by the real script, and compared with the formula and with a
simulation whose truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import coverage
from modules.config import parse_config
from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Cut, split
from modules.measurement import arrow, contrast
from modules.measurement.held_out import held_out_text
from modules.measurement.loss_files import read_losses
from modules.measurement.noise import noise_of, t_quantile
from modules.models import build_model
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from tests.measurement.test_control import config, dataset
from tests.measurement.test_measure import measure
from tests.toy import run_script

CONTEXT, HELD_OUT, SEEDS = 16, 20 * 8 * 16, 3


def folded(folder, data, name="tiny"):
    path = config(folder, data, name)
    written = json.loads(path.read_text())
    written["training_params"]["held_out_fold"] = "by_seed"
    path.write_text(json.dumps(written))
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    data = dataset(folder, split="symmetric")
    told = measure(folded(folder, data), "--seeds", SEEDS, "-p", "test", "-d", "cpu", "--save_losses")
    assert told.returncode == 0, told.stderr
    (comparison,) = json.loads((folder / "runs" / "test" / "report" / "arrow.json").read_text())["comparisons"]
    return folder, data, told, comparison


def state(folder, order, seed):
    return folder / "runs" / "test" / "state" / f"tiny_{order}_seed{seed}.state"


def loss_of(path, tokens, backward):
    """Of a state's model on these tokens, by hand."""
    found = load_state(path)
    of_run = parse_config(found["config"], found["run"])
    model = build_model("gpt", 0, **of_run.model_arguments).eval()
    model.load_state_dict(found["model"])
    texts = torch.from_numpy(tokens.astype(np.int64)).view(-1, CONTEXT)
    targets = texts.flip(1) if backward else texts
    inputs = F.pad(targets[:, :-1], (1, 0), value=open_tokens(of_run.dataset_path).bos_id)
    with torch.no_grad():
        return float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


def test_each_seed_is_measured_on_its_own_fold(measured):
    folder, data, told, comparison = measured
    tokens = np.asarray(open_tokens(data).tokens)
    for seed, each in enumerate(comparison["arrow"]["per_seed"]):
        end = len(tokens) - seed * HELD_OUT
        for order in ("forward", "backward"):
            loss = loss_of(state(folder, order, seed), tokens[end - HELD_OUT : end], order == "backward")
            assert each[order] == pytest.approx(loss, abs=1e-5)
    held_out = comparison["held_out"]
    assert (held_out["folds"], held_out["tokens"]) == (SEEDS, SEEDS * HELD_OUT)
    assert f"{SEEDS * HELD_OUT:,} held-out tokens, {SEEDS} seed(s)" in told.stdout
    report = (folder / "runs" / "test" / "report" / "report.md").read_text()
    assert f"a fold of the text for each of {SEEDS} seeds" in report


def test_the_interval_is_that_of_the_seeds_with_their_folds(measured):
    _, _, _, comparison = measured
    nats = [each["nats"] for each in comparison["arrow"]["per_seed"]]
    found = comparison["arrow"]["nats"]
    between = np.var(nats, ddof=1) / SEEDS
    assert found["value"] == pytest.approx(np.mean(nats))
    assert found["se"] == pytest.approx(max(between, found["noise"]["windows"]) ** 0.5)
    assert (
        comparison["control"]["exact"]
        and comparison["control"]["turns"]["both"] == comparison["arrow"]["percent"]["both"]
    )
    assert len(comparison["convergence"]["points"]) == 3 and comparison["by_class"] is None
    assert np.mean(comparison["by_context"]["arrow"]) == pytest.approx(found["value"], abs=1e-6)
    assert np.mean(comparison["by_position"]["forward"]) == pytest.approx(comparison["arrow"]["forward"], abs=1e-6)


def test_losses_of_folds_are_judged_alike_when_they_are_read_again(measured):
    folder, _, _, comparison = measured
    written = folder / "runs" / "test" / "report" / "losses.npz"
    assert read_losses(written)["tiny"].folds.tolist() == sorted(read_losses(written)["tiny"].folds)[::-1]
    told = measure("--losses", written, "-o", folder / "again")
    assert told.returncode == 0, told.stderr
    (again,) = json.loads((folder / "again" / "arrow.json").read_text())["comparisons"]
    assert again["arrow"]["percent"]["both"] == pytest.approx(comparison["arrow"]["percent"]["both"], abs=1e-4)
    assert again["held_out"]["folds"] == SEEDS
    arrays = dict(np.load(written))
    np.savez(folder / "bad.npz", **arrays | {"folds_tiny": np.array([1, 1, 2])})
    told = measure("--losses", folder / "bad.npz")
    assert told.returncode and "expected the first token of another fold for each of 3 seeds" in told.stderr


def test_more_seeds_than_folds_are_refused_before_anything_is_trained(measured, tmp_path):
    folder, data, _, _ = measured
    n_folds = len(open_tokens(data).tokens) // HELD_OUT
    path = folded(tmp_path, data, "many")
    for extra in (("--seeds", n_folds + 1), ("--seeds", 2, "--until", 0.1, "--max_seeds", n_folds + 1)):
        told = measure(path, *extra, "-p", "test", "-d", "cpu")
        assert told.returncode and f"expected at most {n_folds} seeds" in told.stderr
    assert not (tmp_path / "runs" / "test" / "state").exists()


def test_seeds_that_share_a_fold_while_others_do_not_are_refused(measured):
    _, data, _, _ = measured
    held_out = [held_out_windows(data, seed) for seed in (0, 1, 0)]
    with pytest.raises(UserError, match="seeds 0 and 7 hold out the same fold"):
        held_out_text(held_out, [0, 1, 7])
    assert not held_out_text(held_out[::2], [0, 7]).folds, "all have one text"


def held_out_windows(data, seed):
    return split(open_tokens(data), Cut(CONTEXT, 8, HELD_OUT // CONTEXT, 8, by_seed=True), READ_FORWARD, seed)[1]


def test_some_of_the_seeds_can_be_compared(measured):
    folder, _, _, comparison = measured
    states = [state(folder, order, seed) for order in ("forward", "backward") for seed in (2, 0)]
    told = measure("-o", folder / "some", "-d", "cpu", "-t", folder / "prose_tokenizer", "--states", *states)
    assert told.returncode == 0, told.stderr
    (some,) = json.loads((folder / "some" / "arrow.json").read_text())["comparisons"]
    assert some["arrow"]["per_seed"] == [comparison["arrow"]["per_seed"][seed] for seed in (0, 2)]
    assert sum(row["tokens"] for row in some["by_class"]) == 2 * HELD_OUT


def test_another_fold_is_another_run(measured):
    folder, data, _, _ = measured
    path = config(folder, data)  # the same name, the end of the text held out
    told = measure(path, "--seeds", 1, "-p", "test", "-d", "cpu")
    folded(folder, data)
    assert told.returncode and "training_params.held_out_fold by_seed there and last in the config" in told.stderr


def test_a_dry_run_says_which_fold(measured, tmp_path):
    _, data, _, _ = measured
    path = folded(tmp_path, data, "dry")
    written = json.loads(path.read_text())
    written["training_params"]["seed"] = 1
    path.write_text(json.dumps(written))
    told = run_script("train_script.py", path, "-d", "cpu", "--dry_run")
    assert f", fold 2 of {len(open_tokens(data).tokens) // HELD_OUT} from the end" in told.stdout


def test_a_trained_control_holds_out_the_same_text(tmp_path):
    data = dataset(tmp_path)
    told = measure(folded(tmp_path, data), "--seeds", 2, "-p", "test", "-d", "cpu", "--save_losses")
    assert told.returncode == 0, told.stderr
    report = tmp_path / "runs" / "test" / "report"
    text, control = json.loads((report / "arrow.json").read_text())["comparisons"]
    losses = read_losses(report / "losses.npz")
    assert losses["tiny_reversed"].folds.tolist() == [0, HELD_OUT], "the end of the text is the control's beginning"
    halves = [(one - other) / 2 for one, other in zip(*(percents(each) for each in (text, control)), strict=True)]
    assert text["control"]["turns"]["value"] == pytest.approx(np.mean(halves), abs=1e-3)
    between = np.var(halves, ddof=1) / 2
    assert text["control"]["turns"]["noise"]["seeds"] == pytest.approx(between, rel=0.05)
    assert [each["at"] for each in text["control"]["by_step"]] == [2, 4, 6]


def percents(comparison):
    """The arrow of each seed, in percent of the mean of both losses."""
    return [
        200 * (each["backward"] - each["forward"]) / (each["backward"] + each["forward"])
        for each in comparison["arrow"]["per_seed"]
    ]


# In simulation
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law, n_seeds", [("normal", 5), ("normal", 10), ("exponential", 5)])
def test_intervals_of_folds_hold_the_truth(law, n_seeds):
    """A small version of benchmarks/coverage.py."""
    for fold_sd in (0, 1):
        share, width = coverage.coverage_of_folds(law, fold_sd, 0, n_seeds, runs=400)
        assert 0.91 <= share <= 0.98 and width > 1.96


def test_the_noise_of_folds_is_no_less_than_that_of_their_windows():
    parts = np.random.default_rng(1).standard_normal((5, 400))
    alike = parts - parts.mean(axis=1, keepdims=True)  # seeds that agree by chance
    found = noise_of(alike, folds=True)
    windows = sum(noise_of(each[None]).windows for each in alike) / 25
    assert found.variance == pytest.approx(windows) and found.half_width == pytest.approx(
        t_quantile(found.windows_df) * windows**0.5
    )
    assert found.with_seeds(20).variance == pytest.approx(windows / 4), "more seeds are more text"


def test_contrasts_of_folds_are_paired_by_seed():
    random = np.random.default_rng(2)
    one, other = (random.standard_normal((6, 200)) + 3 * random.standard_normal((6, 1)) for _ in range(2))
    common = 5 * random.standard_normal((6, 1))
    samples = [arrow.Sample(0.0, parts + common, folds=True) for parts in (one, other)]
    found = contrast.contrast(*samples, same_seeds=True, same_text=False)
    between = (one - other).mean(axis=1).var(ddof=1) / 6
    assert found.noise.variance == pytest.approx(between)
    mixed = [samples[0], replace(samples[1], folds=False)]
    assert contrast.contrast(*mixed, same_seeds=True, same_text=False).noise.variance == pytest.approx(
        between, rel=0.01
    )
