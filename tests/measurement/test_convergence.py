"""Whether an arrow has converged, from the held-out losses that runs keep at each validation; and the arrow by context
from one pair."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.data.orders import READ_BACKWARD
from modules.measurement import arrow, evaluation
from modules.measurement.comparison import compare
from modules.measurement.convergence import LossPair, convergence
from modules.measurement.evaluation import evaluate, held_out_windows, load_model, spread
from modules.measurement.measure import evaluate_pairs
from modules.measurement.pairing import pair_up, read_run
from modules.models.evaluate import held_out_losses, sub_window_losses
from modules.system.errors import UserError
from modules.training import validations
from modules.training.resume import files_of
from tests.toy import PROJECT, metrics_of, state_path
from tests.training.test_identity import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a forward and a backward run of 20 steps, validated at 5, 10, 15 and 20."""
    folder = tmp_path_factory.mktemp("pair")
    for name, backwards in (("x_forward", False), ("x_backward", True)):
        train(folder, name, training_params__backwards=backwards, training_params__save_every=5)
    return folder, pair_up([read_run(state_path(folder, name)) for name in ("x_forward", "x_backward")])[0]


def test_each_validation_keeps_the_loss_of_each_window(pair):
    folder, ((forward, _),) = pair
    kept = files_of(forward.config, PROJECT).validations
    assert validations.steps(kept) == [5, 10, 15, 20]
    logged = {entry["step"]: entry["loss"] for entry in metrics_of(folder, "x_forward") if entry["split"] == "valid"}
    for step in validations.steps(kept):
        assert validations.read(kept, step, 32).mean() == pytest.approx(logged[step], abs=1e-6)
    by_window = evaluate(forward, load_model(forward, CPU), held_out_windows(forward), CPU)[0].losses_WT.mean(axis=1)
    np.testing.assert_allclose(validations.read(kept, 20, 32), by_window, atol=1e-5)


def test_the_arrow_by_checkpoint_is_that_of_each_checkpoint(pair, tmp_path):
    folder, group = pair
    found = compare(*evaluate_pairs(group, CPU, tmp_path)).comparison.convergence
    assert [point.step for point in found.points] == [5, 10, 15, 20]
    losses = {
        name: {entry["step"]: entry["loss"] for entry in metrics_of(folder, name) if entry["split"] == "valid"}
        for name in ("x_forward", "x_backward")
    }
    for point in found.points:
        forward, backward = (losses[name][point.step] for name in ("x_forward", "x_backward"))
        assert point.percent == pytest.approx(100 * (backward / forward - 1), abs=1e-3)
        assert point.loss == pytest.approx((forward + backward) / 2, abs=1e-5)
        assert point.interval[0] < point.percent < point.interval[1]
    assert found.change == pytest.approx(found.points[3].percent - found.points[1].percent)
    assert found.fall > 0 and found.passes == pytest.approx(20 * 16 * 16 / (60_000 - 512))
    assert set(found.gaps) == {"forward", "backward"}


def test_a_damaged_validation_is_left_out_and_named(pair, tmp_path, capsys):
    _, group = pair
    kept = files_of(group[0][0].config, PROJECT).validations
    whole = (kept / "000000000010.npy").read_bytes()
    try:
        for damaged in (whole[:50], b"", whole[:-4] + b"\xff\xff\xff\x7f", b"junk"):
            (kept / "000000000010.npy").write_bytes(damaged)
            with pytest.raises(UserError, match=r"000000000010\.npy"):
                validations.read(kept, 10, 32)
        assert [
            point.step for point in compare(*evaluate_pairs(group, CPU, tmp_path)).comparison.convergence.points
        ] == [5, 15, 20]
        assert "000000000010.npy" in capsys.readouterr().err
    finally:
        (kept / "000000000010.npy").write_bytes(whole)


def series(arrows, steps, rng, noise=0.02):
    """Validations of three seeds whose arrow (nats at loss 3) takes the values `arrows`."""
    difficulty, shape = rng.normal(3, 0.3, (1, 400, 1)), (3, 400, 1)
    found = {}
    for step, value in zip(steps, arrows, strict=True):
        forward = difficulty + rng.normal(0, noise, shape)
        found[step] = LossPair(forward, forward + value + rng.normal(0, noise, shape), None)
    return found


@pytest.mark.parametrize("arrows, moving", [([0.3, 0.2, 0.1, 0.0], True), ([0.3, 0.02, 0.02, 0.02], False)])
def test_an_arrow_that_changes_by_more_than_its_interval_is_still_moving(arrows, moving):
    steps = [250, 500, 750, 1000]
    found = convergence(
        series(arrows, steps, np.random.default_rng(0)), 1000, 1.0, None, {"forward": 3.0, "backward": 3.0}, 0.01
    )
    assert found.moving is moving and found.verdict.startswith("Still moving" if moving else "Not seen to move")
    assert found.change == pytest.approx(100 * (arrows[3] - arrows[1]) / 3, abs=0.3) and not found.warnings


def test_what_is_not_known_is_not_called_converged():
    for validated in (series([0.1], [1000], np.random.default_rng(0)), {}):
        found = convergence(validated, 1000, 1.0, None, {"forward": 3.0, "backward": 3.0}, 0.01)
        assert found.moving is None and "not known" in found.verdict


def test_many_passes_and_unequal_gaps_are_warned_of():
    found = convergence({}, 10, 2.6, {"forward": 2.9, "backward": 2.95}, {"forward": 3.0, "backward": 3.0}, 0.01)
    assert (
        len(found.warnings) == 2
        and "2.6 times" in found.warnings[0]
        and "+0.1000 nats forward and +0.0500 backward" in found.warnings[1]
    )
    assert not convergence(
        {}, 10, 1.5, {"forward": 2.9, "backward": 2.9}, {"forward": 3.0, "backward": 3.0}, 0.01
    ).warnings


@pytest.mark.parametrize("length", [2, 8])
def test_windows_in_parts_are_windows_of_that_length(pair, length):
    """Against each part evaluated alone, behind BOS, in the direction of reading."""
    for run in pair[1][0]:
        model, windows = load_model(run, CPU), held_out_windows(run)
        tokens = torch.from_numpy(windows.token_file.tokens[windows.first :].astype(np.int64)).view(-1, length)
        read = tokens.flip(1) if windows.reading == READ_BACKWARD else tokens
        logits = model(torch.cat([torch.zeros(len(read), 1, dtype=torch.long), read[:, :-1]], dim=1))
        expected = (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), read.flatten(), reduction="none")
            .view(32, 16)
            .mean(1)
        )
        np.testing.assert_allclose(
            sub_window_losses(model, windows, length, 8, CPU), expected.detach().numpy(), atol=1e-5
        )
        with pytest.raises(ValueError, match="divide"):
            sub_window_losses(model, windows, 3, 8, CPU)


@given(count=st.integers(1, 3_000), wanted=st.integers(1, 3_000))
def test_stretches_are_as_many_windows_as_wanted_and_evenly_spread(count, wanted):
    stretches = spread(count, wanted)
    windows = [window for stretch in stretches for window in stretch]
    assert windows == sorted(set(windows)) and windows[0] == 0
    assert windows[-1] == count - 1 or len(stretches) == 1 < count
    assert wanted / 2 < len(windows) <= wanted or len(windows) == count <= wanted
    gaps = np.diff([stretch.start for stretch in stretches])
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_windows_in_parts_are_those_of_the_stretches(pair, monkeypatch):
    run = pair[1][0][0]
    windows = held_out_windows(run)
    monkeypatch.setattr(evaluation, "SUB_WINDOW_TOKENS", 8 * 16)
    monkeypatch.setattr(evaluation, "STRETCHES", 4)
    (found,) = evaluate(run, load_model(run, CPU), windows, CPU)
    assert found.in_parts.tolist() == [0, 1, 10, 11, 20, 21, 30, 31]
    every = sub_window_losses(load_model(run, CPU), windows, 4, 8, CPU)
    np.testing.assert_allclose(found.by_length[4], every[found.in_parts], atol=1e-6)


def test_the_arrow_by_context_ends_with_the_whole_window(pair, tmp_path):
    comparison = compare(*evaluate_pairs(pair[1], CPU, tmp_path)).comparison
    assert [row.length for row in comparison.by_length] == [2, 4, 8, 16]
    assert comparison.by_length[-1].percent == comparison.arrow.percent.value
    run = pair[1][0][0]
    whole = held_out_losses(load_model(run, CPU), held_out_windows(run), 16, CPU)
    assert comparison.by_length[-1].forward == pytest.approx(whole.mean())
    assert comparison.by_length[0].forward > comparison.by_length[-1].forward, "less context costs more"
    assert arrow.measure(whole, whole).nats.value == 0
