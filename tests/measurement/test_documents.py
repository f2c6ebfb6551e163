"""Documents of the held-out text: windows in groups of them, and those with the largest arrows, from an .h5 that says
where its documents begin to the report."""

import csv
import json

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.data.windows import Windows
from modules.measurement.documents import FEWEST_GROUPS, LISTED, PASSAGE_TOKENS, document_of_tokens, groups_of, largest
from modules.measurement.held_out import HeldOutText
from modules.measurement.loss_files import read_losses
from tests.measurement.test_control import config, dataset
from tests.measurement.test_measure import measure


def windows(count: int, length: int, first: int = 0) -> Windows:
    return Windows(None, first, count, length, length, False)


def tokens_of(held_out: Windows) -> np.ndarray:
    return HeldOutText((held_out,)).tokens[0]


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(2, 400), st.integers(1, 40), st.integers(0, 50)
)
def test_groups_are_neighbours_of_a_least_size_that_end_at_documents(lengths, count, length, first):
    documents = np.cumsum([0, *lengths])
    held_out = windows(count, length, first)
    groups = groups_of(documents, held_out)
    if groups is None:
        return
    assert groups[0] == 0 and set(np.diff(groups)) <= {0, 1} and groups[-1] + 1 >= FEWEST_GROUPS
    assert np.bincount(groups).min() >= count ** (1 / 3)
    middle_W = document_of_tokens(documents, tokens_of(held_out)).reshape(count, length)[:, length // 2]
    assert all(middle_W[i] != middle_W[i - 1] for i in np.flatnonzero(np.diff(groups)) + 1), "none parts a document"


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 30))
def test_each_token_is_of_the_document_that_began_last(count, length, first):
    documents = np.array([0, 7, 8, 40, 100])
    tokens = range(first, first + count * length)
    expected = [max(i for i, start in enumerate(documents) if start <= token) for token in tokens]
    assert document_of_tokens(documents, tokens_of(windows(count, length, first))).tolist() == expected


def test_a_few_long_documents_are_no_groups():
    assert groups_of(np.array([0, 5_000]), windows(1_000, 10)) is None
    assert len(np.unique(groups_of(np.arange(0, 10_000, 500), windows(1_000, 10)))) == 20


def test_the_largest_arrows_either_way_are_listed_and_short_stretches_are_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 100)
    labels[-50:] = 30  # too short for its arrow to say anything
    forward = rng.gamma(4, 1, (2, 300, 10))
    shift = np.linspace(-1, 1, 31)[labels]
    shift[-50:] = 50
    found = largest(
        forward, forward + shift.reshape(300, 10), labels, 1_000 + np.arange(3_000), lambda start, n: f"{start}+{n}"
    )
    assert [each.number for each in found.stretches] == [28, 27, 26, 25, 24, 4, 3, 2, 1, 0]
    assert found.count == 29 and found.least_tokens == PASSAGE_TOKENS and len(found.stretches) == 2 * LISTED
    last = found.stretches[-1]
    assert (last.first_token, last.tokens, last.words) == (1_000, 100, "0+100") and last.nats == pytest.approx(-1)
    assert last.percent == pytest.approx(100 * (last.backward / last.forward - 1))
    assert largest(forward[:, :6], forward[:, :6], np.zeros(60), np.arange(60)) is None


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A measurement on an .h5 whose documents are of 90 to 230 tokens."""
    folder = tmp_path_factory.mktemp("documents")
    made = dataset(folder, split="symmetric")
    data = folder / "documents.h5"
    with h5py.File(made) as old, h5py.File(data, "w") as new:
        tokens = new.create_dataset("tokens", data=old["tokens"][:])
        kept = ("vocab_size", "tokenizer_fingerprint", "text_bytes", "bos_id", "symmetric")
        tokens.attrs.update({name: old["tokens"].attrs[name] for name in kept})
        starts = np.cumsum(np.random.default_rng(0).integers(90, 230, len(tokens) // 160))
        new["documents"] = np.array([0, *starts[starts < len(tokens)]], dtype=np.uint64)
    told = measure(
        config(folder, data), "--seeds", 2, "-p", "test", "-d", "cpu", "--save_losses", "-t", folder / "prose_tokenizer"
    )
    assert told.returncode == 0, told.stderr
    return folder, data, told


def test_a_report_clusters_by_document_and_lists_the_largest(measured, tmp_path):
    folder, data, _ = measured
    report = folder / "runs" / "test" / "report"
    (found,) = json.loads((report / "arrow.json").read_text())["comparisons"]
    kept = read_losses(report / "losses.npz")["tiny"]
    assert found["held_out"]["groups"] == len(np.unique(kept.documents)) >= FEWEST_GROUPS
    text = (report / "report.md").read_text()
    assert f"in {found['held_out']['groups']} groups of neighbouring documents" in text
    for heading in ("### Documents with the largest arrows", "### Passages with the largest arrows"):
        assert heading in text

    with open(report / "losses-by-document.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with h5py.File(data) as file:
        starts, n_tokens = file["documents"][:], len(file["tokens"])
    first = n_tokens - found["held_out"]["tokens"]
    of_one = [row for row in rows if row["order"] == "forward" and row["seed"] == "1"]
    assert sum(int(row["tokens"]) for row in of_one) == found["held_out"]["tokens"]
    assert len(of_one) == 1 + np.count_nonzero(starts > first)
    stream = kept.by_order["forward"][1].ravel()
    for row in of_one[:3]:
        begin = int(row["first_token"])
        mean = stream[begin : begin + int(row["tokens"])].mean()
        assert float(row["nats_per_token"]) == pytest.approx(mean, abs=1e-5)

    again = measure("--losses", report / "losses.npz", "-o", tmp_path)
    assert again.returncode == 0
    (theirs,) = json.loads((tmp_path / "arrow.json").read_text())["comparisons"]
    assert theirs["arrow"]["percent"]["both"] == pytest.approx(found["arrow"]["percent"]["both"], abs=1e-3)
