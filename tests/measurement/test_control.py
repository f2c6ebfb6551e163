"""The reversed control, contrasts, more seeds until it is enough, and losses as files: the measurement end to end on a
tiny text."""

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from modules.data.token_file import open_tokens
from modules.measurement import arrow, contrast
from modules.measurement.control import control_of, why_none
from modules.measurement.loss_files import Losses, read_losses, write_losses
from modules.system.errors import UserError
from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
from modules.tokenizer import get_tokenizer
from tests.measurement.test_measure import measure, write_config
from tests.tok_texts import sample_text

PUBLISHED = (
    Path(__file__).parents[3] / "shared" / "published" / "losses" / "backwards_2505.08739.npz"
)  # where there is a copy of it


def dataset(folder, split="gpt2", name="prose"):
    """A text, its tokenizer and its .h5."""
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.txt").write_text(sample_text(30_000))
    tokenizer = create_tokenizer(folder / name, folder, f"{name}_tokenizer", vocab_size=300, split=split)
    chunks = tokenize_folder(folder / name, tokenizer, num_workers=1)
    return make_h5(chunks, folder, get_tokenizer(tokenizer))


def config(folder, data, name="tiny", **model):
    path = write_config(
        folder, name, steps=6, save_every=2, vocab_size=300, **{"attn_length": 16, "dropout": 0.0} | model
    )
    written = json.loads(path.read_text())
    written["training_params"] |= {"dataset_folder": str(data), "stride": 8, "batch_size": 8, "valid_steps": 20}
    path.write_text(json.dumps(written))
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two seeds with their control, trained side by side nowhere: in this process."""
    folder = tmp_path_factory.mktemp("control")
    data = dataset(folder)
    told = measure(
        config(folder, data), "--seeds", 2, "-p", "test", "-d", "cpu", "--save_losses", "-t", folder / "prose_tokenizer"
    )
    assert told.returncode == 0, told.stderr
    return folder, data, told


def comparisons(folder, project="test"):
    found = json.loads((folder / "runs" / project / "report" / "arrow.json").read_text())["comparisons"]
    return {each["name"]: each for each in found}


def test_the_control_is_the_text_reversed_and_tokenized_afresh(measured):
    folder, data, _ = measured
    text = (folder / "prose" / "prose.txt").read_bytes().decode()
    control = folder / "runs" / "test" / "control" / "prose_reversed"
    tokens = open_tokens(control / "prose_reversed.h5")
    assert tokens.reversed_of == open_tokens(data).fingerprint
    assert get_tokenizer(control / "tokenizer").backend.decode(np.asarray(tokens.tokens).tolist()) == text[::-1]
    assert why_none(tokens) == "it is a control itself"


def test_three_numbers_are_reported_each_with_its_interval(measured):
    folder, _, told = measured
    found = comparisons(folder)
    assert set(found) == {"tiny", "tiny_reversed"}
    text, control = found["tiny"], found["tiny_reversed"]
    said = text["control"]
    assert said["name"] == "tiny_reversed" and not said["exact"] and control["control"] is None
    losses = [(each["arrow"]["forward"], each["arrow"]["backward"]) for each in (text, control)]
    for unit, arrows in (
        ("", [200 * (backward - forward) / (backward + forward) for forward, backward in losses]),
        ("_nats", [backward - forward for forward, backward in losses]),
    ):
        assert said[f"turns{unit}"]["value"] == pytest.approx((arrows[0] - arrows[1]) / 2)
        assert said[f"stays{unit}"]["value"] == pytest.approx(sum(arrows) / 2)
    assert said["turns"]["both"][0] < said["turns"]["value"] < said["turns"]["both"][1]
    assert "the arrow of time, is" in told.stdout and "the half that does not" in told.stdout
    assert "Still moving" in told.stdout or "Not seen to move" in told.stdout
    report = (folder / "runs" / "test" / "report" / "report.md").read_text()
    for words in ("the arrow of time, is", "passes over the text", "By checkpoint", "By context, from these models"):
        assert words in report
    for picture in ("arrow-by-checkpoint.png", "arrow-by-context.png"):
        assert (folder / "runs" / "test" / "report" / picture).stat().st_size


def test_the_halves_are_known_in_shorter_windows_and_at_each_validation_too(measured):
    folder, _, _ = measured
    found = comparisons(folder)
    said, both = found["tiny"]["control"], (found["tiny"], found["tiny_reversed"])
    lengths, steps = ([each["at"] for each in said[key]] for key in ("by_length", "by_step"))
    assert lengths == [2, 4, 8, 16] and steps == [2, 4, 6]
    of_lengths = [
        [200 * (row["backward"] - row["forward"]) / (row["backward"] + row["forward"]) for row in each["by_length"]]
        for each in both
    ]
    # A point has the arrow p in percent of the forward loss: of the mean of both it is p / (1 + p / 200).
    of_steps = [
        [point["percent"] / (1 + point["percent"] / 200) for point in each["convergence"]["points"]] for each in both
    ]
    for key, arrows in (("by_length", of_lengths), ("by_step", of_steps)):
        for row, text, control in zip(said[key], *arrows, strict=True):
            assert row["turns"]["value"] == pytest.approx((text - control) / 2)
            assert row["stays"]["value"] == pytest.approx((text + control) / 2)
            assert row["turns"]["both"][0] < row["turns"]["value"] < row["turns"]["both"][1]
    for half in ("turns", "stays"):
        assert said["by_length"][-1][half] == said[half]
    report = (folder / "runs" / "test" / "report" / "report.md").read_text()
    assert report.count("| turns round with the text | 95 % | does not | 95 % |") == 2


def test_saved_losses_give_the_same_report_to_whoever_has_them(measured, tmp_path):
    folder, _, _ = measured
    report = folder / "runs" / "test" / "report"
    told = measure("--losses", report / "losses.npz", "-o", tmp_path)
    assert told.returncode == 0, told.stderr
    again = {each["name"]: each for each in json.loads((tmp_path / "arrow.json").read_text())["comparisons"]}
    for name, each in comparisons(folder).items():
        assert again[name]["arrow"]["percent"]["value"] == pytest.approx(each["arrow"]["percent"]["value"], abs=1e-4)
        assert again[name]["arrow"]["percent"]["both"] == pytest.approx(each["arrow"]["percent"]["both"], abs=1e-3)
        assert again[name]["convergence"] is None
    with open(report / "losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 160, "comparisons x orders x seeds x windows"
    mean = np.mean(
        [float(row["nats_per_token"]) for row in rows if (row["comparison"], row["order"]) == ("tiny", "forward")]
    )
    assert mean == pytest.approx(comparisons(folder)["tiny"]["losses"]["forward"]["nats_per_token"], abs=1e-5)


def test_without_the_text_there_is_no_control_and_that_is_said(measured, tmp_path):
    folder, data, _ = measured
    moved = tmp_path / "alone.h5"
    moved.write_bytes(data.read_bytes())
    told = measure(config(tmp_path, moved), "--seeds", 1, "-p", "test", "-d", "cpu")
    assert told.returncode == 0 and "no control is trained: its text is not at hand" in told.stderr
    assert "Without a control" in told.stdout and "One seed: these two models differ" in told.stdout
    refused = measure(config(tmp_path, moved), "--seeds", 1, "-p", "test", "-d", "cpu", "--control")
    assert refused.returncode == 1 and "has no control to train: its text is not at hand" in refused.stderr
    left_out = measure(config(folder, data), "--seeds", 1, "-p", "left_out", "-d", "cpu", "--no_control")
    assert left_out.returncode == 0 and set(comparisons(folder, "left_out")) == {"tiny"}


def test_a_changed_text_is_no_control(tmp_path):
    data = dataset(tmp_path)
    (tmp_path / "prose" / "prose.txt").write_text(sample_text(30_000, seed=1))
    assert "was changed since" in why_none(open_tokens(data))
    with pytest.raises(UserError, match="has no control to train"):
        control_of(open_tokens(data), tmp_path)


def test_several_texts_are_reversed_from_the_last_to_the_first(tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "many" / f"{name}.txt").write_text(f"{name} text of {name} " * 300)
    tokenizer = create_tokenizer(tmp_path / "many", tmp_path, "t", vocab_size=270)
    data = make_h5(tokenize_folder(tmp_path / "many", tokenizer, num_workers=1), tmp_path, get_tokenizer(tokenizer))
    control = control_of(open_tokens(data), tmp_path / "out")
    ids = np.asarray(open_tokens(control).tokens).tolist()
    assert (
        get_tokenizer(control.parent / "tokenizer").backend.decode(ids)
        == "".join((tmp_path / "many" / f"{n}.txt").read_text() for n in "abc")[::-1]
    )


def test_with_a_tokenizer_without_a_direction_the_control_costs_nothing(tmp_path):
    data = dataset(tmp_path, split="symmetric")
    assert open_tokens(data).symmetric
    told = measure(config(tmp_path, data), "--seeds", 2, "-p", "test", "-d", "cpu")
    assert told.returncode == 0, told.stderr
    (found,) = comparisons(tmp_path).values()
    assert found["control"]["exact"] and found["control"]["turns"]["value"] == pytest.approx(
        found["arrow"]["percent"]["value"]
    )
    assert found["control"]["stays"] is None and "all of the arrow turns" in told.stdout
    assert len(list((tmp_path / "runs" / "test" / "state").glob("*.state"))) == 4


def test_seeds_are_added_until_the_interval_is_short_enough(measured):
    folder, data, _ = measured
    told = measure(
        config(folder, data), "--seeds", 2, "-p", "test", "-d", "cpu", "--no_control", "--until", 1e-6, "--max_seeds", 3
    )
    assert told.returncode == 0, told.stderr
    assert "seeds 2 of 3: tiny " in told.stdout
    assert comparisons(folder)["tiny"]["compared"]["seeds"] == [0, 1, 2], "and no more than --max_seeds"


def test_pages_have_the_names_of_their_comparisons_beside_controls(measured, tmp_path):
    folder, data, _ = measured
    told = measure(
        config(tmp_path, data, "a"),
        config(tmp_path, data, "b", embed_dim=8),
        "--seeds",
        1,
        "-p",
        "test",
        "-d",
        "cpu",
        "-t",
        folder / "prose_tokenizer",
    )
    assert told.returncode == 0, told.stderr
    pages = {path.name: path.read_text() for path in (tmp_path / "runs" / "test" / "report").glob("*-page.html")}
    assert set(pages) == {"a-page.html", "b-page.html"}, "controls have a tokenizer of their own, and no page"
    assert all(f"Where the arrow lives: {name[0]}, held-out text" in page for name, page in pages.items())


def test_contrasts_of_a_sweep_are_paired_and_corrected(measured, tmp_path):
    folder, data, _ = measured
    paths = [config(tmp_path, data, f"context{length}", attn_length=length) for length in (8, 16, 32)]
    for path in paths:
        written = json.loads(path.read_text())
        written["training_params"] |= {"held_out_tokens": 1280}
        del written["training_params"]["valid_steps"]
        path.write_text(json.dumps(written))
    told = measure(*paths, "--seeds", 2, "-p", "sweep", "-d", "cpu", "--no_control", "--save_losses")
    assert told.returncode == 0, told.stderr
    report = tmp_path / "runs" / "sweep" / "report"
    contrasts = json.loads((report / "arrow.json").read_text())["contrasts"]
    assert [each["what"].rpartition(": ")[2] for each in contrasts] == [
        "context 16 - 8",
        "context 32 - 16",
        "trend with each doubling of context",
    ]
    losses = read_losses(report / "losses.npz")
    samples = {name: arrow.sample(each.by_order["forward"], each.by_order["backward"]) for name, each in losses.items()}
    expected = contrast.contrast(samples["context16"], samples["context8"], same_seeds=True, same_text=True)
    assert contrasts[0]["value"] == pytest.approx(expected.value, abs=1e-4) and contrasts[0]["se"] == pytest.approx(
        expected.se, rel=1e-3
    )
    assert [each["p_holm"] for each in contrasts] == pytest.approx(contrast.holm([each["p"] for each in contrasts]))
    assert "p (Holm)" in (report / "report.md").read_text()


def test_contrasts_of_positions_are_of_the_halves_that_turn(measured, tmp_path):
    folder, data, _ = measured
    paths = [config(tmp_path, data, f"with_{name}", position=name) for name in ("learned", "none", "rope")]
    told = measure(*paths, "--seeds", 2, "-p", "positions", "-d", "cpu")
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "runs" / "positions" / "report" / "arrow.json").read_text())
    contrasts = found["contrasts"]
    assert [each["what"].rpartition(": ")[2] for each in contrasts] == [
        "positions none - learned, halves that turn",
        "positions rope - learned, halves that turn",
        "positions rope - none, halves that turn",
    ]
    turns = {each["name"]: each["control"]["turns"]["value"] for each in found["comparisons"] if each["control"]}
    assert contrasts[0]["value"] == pytest.approx(turns["with_none"] - turns["with_learned"])
    assert contrasts[1]["value"] == pytest.approx(turns["with_rope"] - turns["with_learned"])
    assert contrasts[2]["value"] == pytest.approx(turns["with_rope"] - turns["with_none"])


# Files of losses
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PUBLISHED.exists(), reason="published losses are not here")
def test_published_losses_give_the_expected_arrows(tmp_path):
    found = measure("--losses", PUBLISHED, "-o", tmp_path)
    assert found.returncode == 0, found.stderr
    values = {
        each["name"]: each["arrow"]["percent"]["value"]
        for each in json.loads((tmp_path / "arrow.json").read_text())["comparisons"]
    }
    expected = {
        "124M": 0.29,
        "355M": 0.75,
        "774M": 1.24,
        "124M, permuted": 41.3,
        "355M, permuted": 34.8,
        "774M, permuted": 32.4,
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=0.05 if value > 2 else 0.006)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"forward": np.ones((2, 5))}, "of another order, found forward"),
        (
            {"backward_a": np.ones((2, 5)), "forward_b": np.ones((2, 5))},
            "a: expected losses of forward and of another order",
        ),
        (
            {"forward": np.ones((2, 5)), "backward": np.ones((2, 6))},
            r"equal shapes in all orders, found forward \(2, 5, 1\)|equal shapes",
        ),
        ({"forward": np.ones((2, 1)), "backward": np.ones((2, 1))}, "at least two windows"),
        (
            {"forward": np.ones((2, 5)), "backward": np.full((2, 5), np.nan)},
            "backward: holds losses that are not finite",
        ),
        ({"forward": -np.ones((2, 5)), "backward": -np.ones((2, 5))}, "forward: holds losses below zero"),
        ({"forward": np.ones(5), "backward": np.ones(5)}, r"forward: expected losses \[seeds, windows\]"),
        ({"forward": np.ones((2, 5), dtype=int), "backward": np.ones((2, 5), dtype=int)}, "forward: expected losses"),
        ({"forward": np.array([[object()]]), "backward": np.ones((1, 1))}, "not a .npz of losses"),
        (
            {"forward": np.ones((2, 5)), "backward": np.ones((2, 5)), "documents": np.arange(4)},
            "documents: expected one for each of 5 windows",
        ),
    ],
)
def test_what_are_no_losses_is_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "l.npz", **arrays)
    with pytest.raises(UserError, match=words) as refused:
        read_losses(tmp_path / "l.npz")
    assert "l.npz" in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_damaged_files_of_losses_are_one_line(tmp_path):
    rng = np.random.default_rng(0)
    losses = Losses({"forward": rng.random((2, 6, 3)), "backward": rng.random((2, 6, 3))})
    path = write_losses(tmp_path, {"a": losses})["npz"]
    whole = path.read_bytes()
    truth = read_losses(path)["a"].by_order
    mutations = [b"", b"junk" * 50, whole[:100], whole[:-30]]
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        mutations.append(bytes(changed))
    refused = 0
    for mutation in mutations:
        path.write_bytes(mutation)
        try:
            found = read_losses(path)
        except UserError as error:
            refused += "losses.npz" in str(error)
        else:
            assert all(
                np.array_equal(each.by_order[order], truth[order]) for each in found.values() for order in each.by_order
            )
    assert refused > 30
    with pytest.raises(UserError, match="no such file"):
        read_losses(tmp_path / "none.npz")


def test_an_h5_that_says_nonsense_of_its_texts_is_one_line(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("tokens", data=np.ones(9, dtype=np.uint16)).attrs.update({"texts": '[["a"]]'})
    with pytest.raises(UserError, match="what it says of its texts"):
        open_tokens(tmp_path / "x.h5")
