"""Windows, directions and order against brute force."""
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.dataset import Windows, open_tokens, permute, split, step_order
from modules.errors import UserError
from tests.toy import write_tokens


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    return open_tokens(write_tokens(tmp_path_factory.mktemp("data") / "toy.h5", n_tokens=5_000))


@pytest.mark.parametrize("backwards", [False, True])
def test_a_window_is_bos_and_its_tokens_in_the_direction_of_reading(token_file, backwards):
    windows = Windows(token_file, first=100, count=20, length=8, stride=3, backwards=backwards)
    inputs, targets = windows.batch([0, 7, 19])
    for row, index in enumerate([0, 7, 19]):
        text = token_file.tokens[100 + 3 * index:][:8].tolist()
        read = text[::-1] if backwards else text
        assert targets[row].tolist() == read
        assert inputs[row].tolist() == [0] + read[:-1]


def test_both_directions_predict_the_same_tokens(token_file):
    def targets(backwards):
        return split(token_file, 16, 8, 50, 4, backwards)[0].batch(np.arange(40))[1]
    assert targets(False).equal(targets(True).flip(1))


@given(n_tokens=st.integers(50, 3000), length=st.integers(2, 20), stride=st.integers(1, 25), held_out=st.integers(1, 40), step=st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_held_out_windows_end_the_file_and_no_training_window_reaches_them(token_file, n_tokens, length, stride, held_out, step):
    class Shorter:
        path, tokens = "shorter.h5", token_file.tokens[:n_tokens]
    needed = held_out * length + length + (step - 1) * stride
    if n_tokens < needed:
        with pytest.raises(UserError, match=f"at least {needed:,}"):
            split(Shorter, length, stride, held_out, step, False)
        return
    training, validation = split(Shorter, length, stride, held_out, step, False)
    starts = training.first + stride * np.arange(len(training))
    assert len(validation) == held_out and validation.first + held_out * length == n_tokens
    assert starts[-1] + length <= validation.first < starts[-1] + length + stride, "as many training windows as fit"
    assert len(training) >= step


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_the_order_is_a_permutation(count, seed, epoch):
    order = permute(np.arange(count), count, seed, epoch)
    assert sorted(order) == list(range(count))
    one = count // 2
    assert permute(np.array([one]), count, seed, epoch)[0] == order[one], "an index does not depend on those asked with it"


def test_the_order_looks_random_and_changes_with_seed_and_epoch():
    count = 1000
    orders = np.array([permute(np.arange(count), count, seed, epoch) for seed in range(20) for epoch in range(20)])
    assert len(np.unique(orders, axis=0)) == len(orders)
    # Where window 0 goes, over 400 orders, in 10 bins: chi-square with 9 degrees of freedom is below 27.9 with probability 0.999.
    bins = np.histogram(orders[:, 0], bins=10, range=(0, count))[0]
    assert ((bins - 40)**2 / 40).sum() < 27.9
    neighbours = np.abs(np.diff(orders, axis=1)).mean()  # |a - b| of two uniform numbers below 1000 is 333 on average
    assert 323 < neighbours < 343


def test_a_billion_windows_need_no_memory_and_no_walk():
    order = step_order(step=5_000_000, step_windows=180, count=10**9, seed=1)
    assert len(set(order)) == 180 and order.min() >= 0 and order.max() < 10**9


@given(count=st.integers(1, 50), step_windows=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_steps_go_through_every_window_once_an_epoch(count, step_windows):
    stream = np.concatenate([step_order(step, step_windows, count, seed=3) for step in range(3 * count // step_windows + 1)])
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count:(epoch + 1) * count]) == list(range(count))


def test_files_of_the_older_kind_give_the_same_windows(token_file, tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        old = file.create_dataset("tokens", shape=(0,), maxshape=(None,), chunks=(1000,), dtype="int32")
        old.resize((5_000,))
        old[:] = token_file.tokens
    old_file = open_tokens(tmp_path / "old.h5")
    assert old_file.vocab_size is None and old_file.fingerprint.split("+")[0] == token_file.fingerprint.split("+")[0]
    indices = np.array([5, 0, 99])
    for new, old in zip(Windows(token_file, 0, 100, 16, 8, True).batch(indices), Windows(old_file, 0, 100, 16, 8, True).batch(indices), strict=True):
        assert new.equal(old)
    old_file.check_ids(64)
    with pytest.raises(UserError, match="token id 63.*vocab_size is 63"):
        old_file.check_ids(63)


def test_ids_beyond_the_models_vocabulary_are_refused(token_file):
    token_file.check_ids(64)
    with pytest.raises(UserError, match="64 ids.*vocab_size is 60"):
        token_file.check_ids(60)


def test_damaged_and_foreign_files_are_refused_with_a_reason(token_file, tmp_path):
    with pytest.raises(UserError, match="no such dataset file"):
        open_tokens(tmp_path / "none.h5")
    whole = open(token_file.path, "rb").read()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a whole .h5 file"):
            open_tokens(tmp_path / "cut.h5")
    (tmp_path / "junk.h5").write_bytes(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(UserError, match="not a whole .h5 file"):
        open_tokens(tmp_path / "junk.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros((3, 3))
    with pytest.raises(UserError, match="'tokens', found \\['images'\\]"):
        open_tokens(tmp_path / "other.h5")
    with h5py.File(tmp_path / "float.h5", "w") as file:
        file["tokens"] = np.zeros(30)
    with pytest.raises(UserError, match="1-D dataset of integers"):
        open_tokens(tmp_path / "float.h5")
