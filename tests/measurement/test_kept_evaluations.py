"""Evaluations that are kept: used where nothing has changed, never where something has, and never in the way."""

import dataclasses
import os
import resource
import shutil

import numpy as np
import pytest
import torch

from modules.measurement import kept_evaluations
from modules.measurement.evaluation import evaluate, held_out_windows, load_model
from modules.measurement.kept_evaluations import evaluate_once, key_of, path_of
from modules.measurement.pairing import read_run
from tests.toy import state_path
from tests.training.test_identity import train

CPU = torch.device("cpu")
TEXTS = [np.arange(1, 21), np.arange(5, 30)]


class Toki:
    """What a key and a snippet want of a tokenizer."""

    fingerprint = "a tokenizer"

    def detokenize(self, ids):
        return "é\udc80 " + " ".join(map(str, ids.tolist()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two orders in one model, and one forward."""
    folder = tmp_path_factory.mktemp("kept")
    train(folder, "both", training_params__order=["forward", "backward"], training_params__steps_to_train=4)
    train(folder, "x_forward", training_params__steps_to_train=4)
    return {name: read_run(state_path(folder, name)) for name in ("both", "x_forward")}


@pytest.fixture
def counted(monkeypatch):
    """The runs that are evaluated."""
    seen = []
    monkeypatch.setattr(
        kept_evaluations, "evaluate", lambda run, *rest: seen.append(run.config.name) or evaluate(run, *rest)
    )
    return seen


def once(run, folder, texts=TEXTS):
    return evaluate_once(run, held_out_windows(run), CPU, texts, Toki(), folder)


@pytest.mark.parametrize("name", ["both", "x_forward"])
def test_what_is_kept_is_what_was_evaluated_to_the_bit(runs, counted, tmp_path, name):
    first, again = once(runs[name], tmp_path), once(runs[name], tmp_path)
    assert counted == [name] and len(first) == len(again) == (2 if name == "both" else 1)
    for one, other in zip(first, again, strict=True):
        assert other.run == one.run and other.snippet == one.snippet
        assert other.windows.reading == one.windows.reading and other.windows.first == one.windows.first
        assert other.losses_WT.dtype == one.losses_WT.dtype and np.array_equal(other.losses_WT, one.losses_WT)
        assert list(other.by_length) == list(one.by_length) and len(other.texts) == len(TEXTS)
        for kept, evaluated in zip(
            [*other.by_length.values(), *other.texts], [*one.by_length.values(), *one.texts], strict=True
        ):
            assert kept.dtype == evaluated.dtype and np.array_equal(kept, evaluated)
    with np.load(path_of(tmp_path, runs[name])) as arrays:
        assert arrays["0 losses"].dtype == np.float32, "half the room, and the same numbers"


def test_whatever_changes_a_number_is_evaluated_again(runs, counted, tmp_path, monkeypatch):
    run = runs["x_forward"]
    model, windows = load_model(run, CPU), held_out_windows(run)
    with torch.no_grad():
        other_model = load_model(run, CPU)
        next(other_model.parameters()).view(-1)[0] += 1e-6
    other_ids = np.array(windows.token_file.tokens)
    other_ids[-1] = 1 + other_ids[-1] % 40
    changed_file = dataclasses.replace(windows.token_file, tokens=other_ids)
    changes = {
        "weights": (run, other_model, windows, TEXTS, Toki(), CPU),
        "a held-out token": (run, model, dataclasses.replace(windows, token_file=changed_file), TEXTS, Toki(), CPU),
        "the held-out windows": (run, model, dataclasses.replace(windows, count=30), TEXTS, Toki(), CPU),
        "a text": (run, model, windows, [TEXTS[0], TEXTS[1] + 1], Toki(), CPU),
        "texts": (run, model, windows, [], Toki(), CPU),
        "no snippet": (run, model, windows, TEXTS, None, CPU),
        "the device": (run, model, windows, TEXTS, Toki(), torch.device("mps")),
    }
    keys = {what: key_of(*arguments) for what, arguments in changes.items()}
    keys["nothing"] = key_of(run, model, windows, TEXTS, Toki(), CPU)
    with monkeypatch.context() as patched:
        patched.setattr(kept_evaluations, "code_fingerprint", lambda: "other code")
        keys["the code"] = key_of(run, model, windows, TEXTS, Toki(), CPU)
    assert len(set(keys.values())) == len(keys)
    once(run, tmp_path)
    once(run, tmp_path, texts=[])
    once(run, tmp_path, texts=[])
    assert counted == ["x_forward"] * 2, "a report with a text, and two without"


def test_the_code_that_evaluates_is_part_of_the_key(tmp_path, monkeypatch):
    copy = tmp_path / "modules"
    shutil.copytree(kept_evaluations.MODULES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept_evaluations, "MODULES", copy)
    fingerprint = kept_evaluations.code_fingerprint.__wrapped__
    before = fingerprint()
    for place in ("models/gpt.py", "kernels/cross_entropy.py", "data/windows.py", "measurement/evaluation.py"):
        with open(copy / place, "a") as file:
            file.write("# changed\n")
        before, last = fingerprint(), before
        assert before != last, place
    with open(copy / "plots.py", "a") as file:
        file.write("# changed\n")
    assert fingerprint() == before, "a picture's colour changes no loss"


def test_a_damaged_file_is_evaluated_again(runs, counted, tmp_path):
    run = runs["x_forward"]
    (first,), path = once(run, tmp_path), path_of(tmp_path, run)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", b"junk", whole[:100], whole[:-1], flipped, bytes(len(whole))):
        path.write_bytes(damaged)
        (again,) = once(run, tmp_path)
        assert np.array_equal(again.losses_WT, first.losses_WT) and path.read_bytes() == whole
    assert len(counted) == 7


def test_where_there_is_no_room_the_user_is_told_and_has_the_numbers(runs, counted, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        (found,) = once(runs["x_forward"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "x_forward: evaluation not kept (" in capsys.readouterr().err and found.losses_WT.size
    assert not [file for _, _, files in os.walk(tmp_path) for file in files], "no half of a file"
