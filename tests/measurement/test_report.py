"""The report says what the losses say, in text, in JSON and in pictures that open."""

import json
from dataclasses import asdict, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from modules.measurement import figures, report
from modules.measurement.comparison import Comparison, Curve, LengthRow, Line, compare_losses
from modules.measurement.convergence import Convergence, Point
from modules.measurement.sweep import marked_for_longer_contexts

CONVERGED = Convergence(
    [Point(step, percent, (percent - 0.2, percent + 0.2), 3.3) for step, percent in ((1, 1.0), (2, 1.1), (3, 1.2))],
    change=0.1,
    fall=0.05,
    passes=1.2,
    gaps={"forward": 0.1, "backward": 0.1},
    warnings=[],
    moving=False,
    verdict="Not seen to move any more.",
)


def comparison(
    name="small", context=16, parameters=120_000, width=64, text="english", n_seeds=3, gap=0.05
) -> Comparison:
    """A comparison of made-up losses, measured as real ones are."""
    random = np.random.default_rng(context)
    forward = random.gamma(4, 0.8, size=(n_seeds, 60, context))
    backward = forward + gap + 0.1 * random.standard_normal(forward.shape)
    told = compare_losses(name, "backward", forward, backward, None, text).comparison
    curve = Curve(Line([1, 2, 3], [5.0, 4.0, 3.5]), Line([2, 3], [4.1, 3.6]))
    return replace(
        told,
        by_length=[LengthRow(length, 3.2, 3.25, 1.5, (1.0, 2.0), 60) for length in (2, 4, context)],
        convergence=CONVERGED,
        curves=[{"forward": curve, "backward": curve}] * n_seeds,
        compared=replace(
            told.compared, parameters=parameters, config={"model_params": {"n_layers": 2, "embed_dim": width}}
        ),
    )


def test_report_json_and_pictures_hold_the_numbers(tmp_path):
    one, command = comparison(), "python measure_arrow.py a.json"
    paths = report.write_report(tmp_path / "new" / "folder", [one], command=command)
    held = {"command": command, "comparisons": [asdict(one)], "contrasts": []}
    assert json.loads(paths["json"].read_text()) == json.loads(json.dumps(held, default=np.ndarray.tolist))
    text = paths["report"].read_text()
    percent = one.arrow.percent
    low, high = percent.both
    assert f"| {one.arrow.nats.value:+.4f} | {percent.value:+.2f} % | {low:+.2f} to {high:+.2f} |" in text
    assert one.arrow.verdict in text and "config.model_params.n_layers: 2" in text and command in text
    for name in ("small-loss", "arrow-by-checkpoint", "arrow-by-context", "arrow-by-tokens-seen"):
        assert f"({name}.png)" in text
        assert imread(paths[name]).shape[:2] == (630, 960)
        assert ElementTree.parse(paths[name].with_suffix(".svg")).getroot().tag.endswith("svg")
    assert sorted(path.name for path in paths["report"].parent.iterdir() if path.name.startswith(".")) == []


def test_figures_of_a_sweep_are_drawn_where_something_varies():
    one, other_context, other_size, other_text = (
        comparison(),
        comparison("long", context=32),
        comparison("big", parameters=2_000_000, width=256),
        comparison("french", text="french"),
    )
    assert not {"arrow-by-context-length", "arrow-by-model-size", "arrow-by-text"} & set(report.draw_all([one]))
    assert "arrow-by-context-length" in report.draw_all([one, other_context])
    assert "arrow-by-model-size" in report.draw_all([one, other_size])
    assert "arrow-by-text" in report.draw_all([one, other_text])


def test_sweep_figure_shows_the_measured_arrows():
    sweep = [comparison("long", context=64, gap=0.2), comparison("short", context=16, gap=0.1)]
    axes = figures.arrow_by_context_length(sweep).axes[0]
    drawn = axes.containers[0].lines[0].get_ydata()
    assert drawn == pytest.approx([c.arrow.percent.value for c in reversed(sweep)])  # from short to long
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(sweep[1].arrow.percent.both)


def test_same_numbers_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        report.write_report(tmp_path / folder, [comparison()])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_runs_without_metrics_or_with_one_seed_still_give_a_report(tmp_path):
    bare = replace(comparison(n_seeds=1), curves=[])
    text = report.write_report(tmp_path, [bare])["report"].read_text()
    assert "| one seed |" in text and "-loss.png" not in text


@given(n=st.integers(1, 3_000))
def test_groups_of_positions_partition_them_and_grow(n):
    groups = figures.growing_groups(n)
    assert [i for start, stop in groups for i in range(start, stop)] == list(range(n))
    sizes = [stop - start for start, stop in groups]
    assert sizes[:-1] == sorted(sizes[:-1]) and len(groups) <= 2 + 2 * n.bit_length()


def test_a_picture_that_cannot_be_drawn_costs_the_report_nothing_else(tmp_path, monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "arrow_by_length", broken)
    paths = report.write_report(tmp_path, [comparison()])
    assert paths["report"].exists() and json.loads(paths["json"].read_text())["comparisons"]
    assert "no font" in capsys.readouterr().err


def test_a_longer_context_with_the_higher_loss_is_still_moving():
    short, long = comparison("short", context=16), comparison("long", context=32)
    higher = short.losses["forward"].nats_per_token + 0.1
    long.losses["forward"] = replace(long.losses["forward"], nats_per_token=higher)
    marked = {each.name: each.convergence.warnings for each in marked_for_longer_contexts([short, long])}
    assert not marked["short"] and "with less context (16) the same model has the lower loss" in marked["long"][0]


def test_cells_cannot_break_a_table():
    assert report.table(["a"], [["x|y"]]).splitlines() == ["| a |", "| --- |", "| x\\|y |"]
