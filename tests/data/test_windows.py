"""Windows, directions and order against brute force."""

import errno
import hashlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.data.orders import READ_BACKWARD, READ_FORWARD, Reading
from modules.data.token_file import attributes_of, check_file, open_tokens, same_dataset
from modules.data.windows import Cut, Windows, permute, split, step_order
from modules.system.errors import UserError
from tests.toy import write_tokens


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    return open_tokens(write_tokens(tmp_path_factory.mktemp("data") / "toy.h5", n_tokens=5_000))


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_a_window_is_bos_and_its_tokens_in_the_order_of_reading(token_file, order):
    windows = Windows(token_file, first=100, count=20, length=8, stride=3, reading=Reading((order,)))
    inputs, targets = windows.batch([0, 7, 19])
    for row, index in enumerate([0, 7, 19]):
        text = token_file.tokens[100 + 3 * index :][:8].tolist()
        read = text[::-1] if order == "backward" else text
        assert targets[row].tolist() == read
        assert inputs[row].tolist() == [0] + read[:-1]


MODULES = Path(__file__).parents[2] / "modules"
# What a flip outside orders.py is there for, other than reading a window in another order.
FLIPS = {
    "export.py": "what the card tells those to write who use the model elsewhere",
    "corpora/reverse.py": "reverses the characters of a text, before there are tokens",
    "corpora/synthetic.py": "makes texts that mirror each other",
    "tok_utils/symbols.py": "the last white space of a text",
    "tok_utils/symmetric.py": "the tokens of a reversed text",
    "measurement/control.py": "what stands between the documents of a reversed text",
    "measurement/contrast.py": "the documents of a reversed text",
    "measurement/noise.py": "a series and its mirror image, before a Fourier transform",
    "training/side_by_side.py": "the last of the lines of an error",
}
BACKWARDS = {
    "config.py": "where it is chosen",
    "exchange/authors.py": "what the authors' checkpoints call it",
    "measurement/runs.py": "where it is chosen",
    "measurement/comparison.py": "compared",
}


def test_nothing_else_knows_the_order_of_reading():
    """No other module flips anything, or asks which way it is."""
    flips, asks = set(), set()
    for path in MODULES.rglob("*.py"):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(MODULES).as_posix()
        if re.search(r"\bflip\w*\(|\[::-1\]|, ::-1\]", source):
            flips.add(name)
        if re.search(r"\bbackwards\b", source):
            asks.add(name)
    assert flips - set(FLIPS) == {"data/orders.py"} and set(FLIPS) <= flips
    assert asks == set(BACKWARDS)


def test_both_directions_predict_the_same_tokens(token_file):
    def targets(order):
        return split(token_file, Cut(16, 8, 50, 4), Reading((order,)))[0].batch(np.arange(40))[1]

    assert targets("forward").equal(targets("backward").flip(1))


SHAPES = {
    "length": st.integers(2, 20),
    "stride": st.integers(1, 25),
    "held_out": st.integers(1, 40),
    "step": st.integers(1, 10),
}


@given(n_tokens=st.integers(50, 3000), **SHAPES)
@settings(max_examples=100, deadline=None)
def test_held_out_windows_end_the_file_and_no_training_window_reaches_them(
    token_file, n_tokens, length, stride, held_out, step
):
    class Shorter:
        path, tokens = "shorter.h5", token_file.tokens[:n_tokens]

    needed = held_out * length + length + (step - 1) * stride
    if n_tokens < needed:
        with pytest.raises(UserError, match=f"at least {needed:,}"):
            split(Shorter, Cut(length, stride, held_out, step), READ_FORWARD)
        return
    training, validation = split(Shorter, Cut(length, stride, held_out, step), READ_FORWARD)
    starts = training.first + stride * np.arange(len(training))
    assert len(validation) == held_out and validation.first + held_out * length == n_tokens
    assert starts[-1] + length <= validation.first < starts[-1] + length + stride, "as many training windows as fit"
    assert len(training) >= step


@given(n_tokens=st.integers(50, 1000), reverse=st.booleans(), **SHAPES)
@settings(max_examples=60, deadline=None)
def test_the_folds_of_seeds_share_no_token_and_no_training_window_reaches_its_own(
    token_file, n_tokens, length, stride, held_out, step, reverse
):
    class Shorter:
        path, tokens, reversed_of = "shorter.h5", token_file.tokens[:n_tokens], "a text" if reverse else None
        gather, bos_id = token_file.gather, token_file.bos_id

    cut, held_out_tokens = Cut(length, stride, held_out, step, by_seed=True), held_out * length
    needed = held_out_tokens + 2 * length + (step - 1) * stride
    if n_tokens < needed:
        with pytest.raises(UserError, match=f"at least {needed:,}"):
            split(Shorter, cut, READ_FORWARD)
        return
    seen, counts = np.zeros(n_tokens, int), set()
    for seed in range(n_tokens // held_out_tokens):
        training, fold = split(Shorter, cut, READ_FORWARD, seed)
        end = fold.first + held_out_tokens
        seen[fold.first : end] += 1
        counts.add(len(training))
        number = np.arange(len(training))
        starts = training.starts(number)
        assert ((starts >= 0) & (starts + length <= n_tokens)).all()
        assert ((starts + length <= fold.first) | (starts >= end)).all(), "none reaches the fold"
        apart = np.diff(starts)
        assert (apart != stride).sum() <= 1 and (apart > 0).all(), "one gap at most"
        unused = n_tokens - held_out_tokens - (len(training) - 1) * stride - length
        assert unused < 2 * (length + stride), "nearly as many as fit"
        assert training.batch(number)[1].numpy().tolist() == token_file.gather(starts, length).tolist()
        assert fold.first == (seed * held_out_tokens if reverse else n_tokens - (seed + 1) * held_out_tokens)
        later = seed + n_tokens // held_out_tokens
        _, again = split(Shorter, cut, READ_FORWARD, later)
        assert again.first == fold.first, "they take turns"
    assert len(counts) == 1 and counts.pop() >= step, "an epoch is as long for each seed"
    assert seen.max() == 1 and seen.sum() == n_tokens // held_out_tokens * held_out_tokens


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_the_order_is_a_permutation(count, seed, epoch):
    order = permute(np.arange(count), count, seed, epoch)
    assert sorted(order) == list(range(count))
    one = count // 2
    assert permute(np.array([one]), count, seed, epoch)[0] == order[one], (
        "an index does not depend on those asked with it"
    )


def test_the_order_looks_random_and_changes_with_seed_and_epoch():
    count = 1000
    orders = np.array([permute(np.arange(count), count, seed, epoch) for seed in range(20) for epoch in range(20)])
    assert len(np.unique(orders, axis=0)) == len(orders)
    # Where window 0 goes, over 400 orders, in 10 bins: chi-square with 9 degrees of freedom is below 27.9 with
    # probability 0.999.
    bins = np.histogram(orders[:, 0], bins=10, range=(0, count))[0]
    assert ((bins - 40) ** 2 / 40).sum() < 27.9
    neighbours = np.abs(np.diff(orders, axis=1)).mean()  # |a - b| of two uniform numbers below 1000 is 333 on average
    assert 323 < neighbours < 343


def test_a_billion_windows_need_no_memory_and_no_walk():
    order = step_order(step=5_000_000, step_windows=180, count=10**9, seed=1)
    assert len(set(order)) == 180 and order.min() >= 0 and order.max() < 10**9


@given(count=st.integers(1, 50), step_windows=st.integers(1, 60), n_orders=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_steps_go_through_every_window_once_an_epoch(count, step_windows, n_orders):
    """In whatever orders, which take turns; a visit says its window, its epoch and its order."""
    steps = [step_order(step, step_windows, count, 3, n_orders) for step in range(3 * count // step_windows + 1)]
    visits = np.concatenate(steps)
    windows, epochs, orders = visits % count, visits // count // n_orders, visits // count % n_orders
    assert (epochs == np.arange(len(visits)) // count).all()
    for epoch in range(len(visits) // count):
        assert sorted(windows[epochs == epoch]) == list(range(count))
    assert (orders == np.arange(len(visits)) % n_orders).all()
    if n_orders == 1:
        assert (visits[:count] == permute(np.arange(count), count, 3, 0)[: len(visits)]).all()


def test_files_of_the_older_kind_give_the_same_windows(token_file, tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        old = file.create_dataset("tokens", shape=(0,), maxshape=(None,), chunks=(1000,), dtype="int32")
        old.resize((5_000,))
        old[:] = token_file.tokens
    old_file = open_tokens(tmp_path / "old.h5")
    assert old_file.vocab_size is None and old_file.fingerprint.split("+")[0] == token_file.fingerprint.split("+")[0]
    indices = np.array([5, 0, 99])
    for new, old in zip(
        Windows(token_file, 0, 100, 16, 8, READ_BACKWARD).batch(indices),
        Windows(old_file, 0, 100, 16, 8, READ_BACKWARD).batch(indices),
        strict=True,
    ):
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


# What an .h5 says


def with_checksums(path, tokens, **changes):
    """An .h5 as make_h5 writes it; `changes` come after the checksums."""
    said = attributes_of(
        len(tokens), vocab_size=64, tokenizer_fingerprint="f", text_bytes=9, bos_id=0, tokens_crc32=zlib.crc32(tokens)
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("tokens", data=tokens).attrs.update(said | changes)
    return path


TOKENS = (np.arange(5_000) % 64).astype(np.uint16)


def test_checksums_see_a_changed_id_or_attribute(tmp_path):
    path = with_checksums(tmp_path / "t.h5", TOKENS)
    offset = h5py.File(path)["tokens"].id.get_offset()
    assert (
        check_file(path)
        == f"{path}: 5,000 tokens, ids 0 to 63 of a vocabulary of 64; checksum {zlib.crc32(TOKENS):08x} as written"
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: offset + 100] + bytes([whole[offset + 100] ^ 1]) + whole[offset + 101 :])
    with pytest.raises(UserError, match="t.h5: damaged: its tokens have the checksum"):
        open_tokens(path)
    for name, value in (
        ("bos_id", 3),
        ("text_bytes", 10),
        ("vocab_size", 65),
        ("tokenizer_fingerprint", "g"),
        ("tokens_crc32", 1),
    ):
        with pytest.raises(UserError, match="does not fit its checksum"):
            open_tokens(with_checksums(path, TOKENS, **{name: value}))


def test_a_large_file_is_checked_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("modules.data.token_file.CHECKED_BYTES", 1_000)
    path = with_checksums(tmp_path / "t.h5", TOKENS)
    data = bytearray(path.read_bytes())
    data[h5py.File(path)["tokens"].id.get_offset() + 100] ^= 1
    path.write_bytes(data)
    open_tokens(path).check_ids(64)
    with pytest.raises(UserError, match="checksum"):
        check_file(path)


def test_ids_beyond_what_the_file_says_are_found(tmp_path):
    path = write_tokens(tmp_path / "t.h5", n_tokens=5_000, vocab_size=64)
    with h5py.File(path, "r+") as file:
        file["tokens"][3_000] = 999
    with pytest.raises(UserError, match="holds the token id 999, but says that its vocabulary has 64"):
        open_tokens(path).check_ids(64)
    with pytest.raises(UserError, match="token id 999"):
        check_file(path)


def test_a_tokenizer_that_cannot_have_made_the_file_is_refused(tmp_path):
    class Toki:
        folder, fingerprint, vocab_size = "tokenizers/x", "f" * 64, 60

    file = open_tokens(write_tokens(tmp_path / "t.h5", n_tokens=5_000))
    file.check_tokenizer(Toki)
    with h5py.File(tmp_path / "old.h5", "w") as old:
        old["tokens"] = file.tokens
    with pytest.raises(UserError, match="has 60 ids .*holds the id 63"):
        open_tokens(tmp_path / "old.h5").check_tokenizer(Toki)
    Toki.fingerprint = "a" * 64
    with pytest.raises(UserError, match="not the tokenizer of .*aaaaaaaaaaaa with 60 ids.*ffffffffffff with 64"):
        file.check_tokenizer(Toki)


def test_bos_and_text_bytes_are_part_of_the_fingerprint_and_older_states_are_known(tmp_path):
    one, bos, size = (
        open_tokens(write_tokens(tmp_path / f"{i}.h5", n_tokens=5_000, **said))
        for i, said in enumerate(({}, {"bos_id": 1}, {"text_bytes": 1}))
    )
    assert len({one.fingerprint, bos.fingerprint, size.fingerprint}) == 3
    digest = hashlib.sha256(b"5000")
    for start in np.linspace(0, 5_000 - 4096, 64).astype(int):
        digest.update(one.tokens[start : start + 4096].astype("<u4").tobytes())
    old = digest.hexdigest()[:16]  # as earlier versions wrote it
    assert (
        one.matches(old)
        and one.matches(one.fingerprint)
        and not one.matches(bos.fingerprint)
        and not one.matches("0" * 16)
    )
    assert same_dataset(old, one.fingerprint) and not same_dataset(one.fingerprint, size.fingerprint)


@pytest.mark.parametrize(
    "attributes, problem",
    [
        ({"vocab_size": 0}, "vocab_size: expected at least 1, found 0"),
        ({"vocab_size": "64"}, "vocab_size: expected an integer"),
        ({"vocab_size": 64.5}, "vocab_size: expected an integer"),
        ({"vocab_size": [64, 64]}, "vocab_size: expected an integer"),
        ({"vocab_size": 2**63}, "vocab_size: "),
        ({"bos_id": 64}, "bos_id: expected an id below vocab_size 64, found 64"),
        ({"bos_id": -1}, "bos_id: "),
        ({"bos_id": float("nan")}, "bos_id: expected an integer"),
        ({"text_bytes": -5}, "text_bytes: "),
        ({"text_bytes": np.bool_(True)}, "text_bytes: "),
        ({"tokenizer_fingerprint": 7}, "tokenizer_fingerprint: expected a string"),
        ({"tokenizer_fingerprint": h5py.Empty("S1")}, "tokenizer_fingerprint: "),
        ({"tokens_crc32": -1}, "tokens_crc32: "),
        ({"attributes_crc32": "x"}, "attributes_crc32: "),
    ],
)
def test_attributes_of_the_wrong_type_or_range_are_one_line(tmp_path, attributes, problem):
    path = write_tokens(tmp_path / "t.h5", n_tokens=100)
    with h5py.File(path, "r+") as file:
        file["tokens"].attrs.update(attributes)
    with pytest.raises(UserError, match=problem) as refused:
        open_tokens(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_strange_files_are_read_or_one_line(token_file, tmp_path):
    ids = np.asarray(token_file.tokens)

    def refuses(problem, make):
        path = tmp_path / "strange.h5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(UserError, match=problem) as refused:
            open_tokens(path)
        assert "\n" not in str(refused.value)

    refuses(
        "found a link to .*toy.h5/tokens",
        lambda file: file.update({"tokens": h5py.ExternalLink(token_file.path, "/tokens")}),
    )
    refuses("found a link to /other", lambda file: file.update({"other": ids, "tokens": h5py.SoftLink("/other")}))
    refuses("found a link to /nowhere", lambda file: file.update({"tokens": h5py.SoftLink("/nowhere")}))
    layout = h5py.VirtualLayout(shape=(5_000,), dtype="u2")
    layout[:] = h5py.VirtualSource(token_file.path, "tokens", shape=(5_000,))
    refuses("data are in other files", lambda file: file.create_virtual_dataset("tokens", layout))
    refuses(
        "data are in other files",
        lambda file: file.create_dataset("tokens", shape=(10,), dtype="u2", external=[(str(tmp_path / "raw"), 0, 20)]),
    )
    refuses("holds no tokens", lambda file: file.create_dataset("tokens", shape=(0,), dtype="u2"))
    for wrong in (
        h5py.Empty("u2"),
        np.zeros((3, 3), int),
        5,
        1.5,
        np.zeros(3, dtype=bool),
        np.zeros(3, dtype=[("a", "u2")]),
    ):
        refuses("1-D dataset of integers", lambda file, wrong=wrong: file.create_dataset("tokens", data=wrong))
    refuses(
        "1-D dataset of integers",
        lambda file: file.create_dataset("tokens", data=["a", "b"], dtype=h5py.string_dtype()),
    )
    refuses("1-D dataset of integers", lambda file: file.create_group("tokens"))
    for number, options in enumerate(
        (
            {"compression": "gzip"},
            {"chunks": (64,), "shuffle": True, "fletcher32": True},
            {"dtype": ">u2"},
            {"dtype": "int64"},
        )
    ):
        with h5py.File(tmp_path / f"fine{number}.h5", "w") as file:
            file.create_dataset("tokens", data=ids, **options)
        fine = open_tokens(tmp_path / f"fine{number}.h5")
        assert fine.gather(np.array([0, 4_000]), 9).tolist() == token_file.gather(
            np.array([0, 4_000]), 9
        ).tolist() and fine.extremes == (1, 63)


def test_a_file_being_written_or_without_permission_is_not_called_damaged(token_file, tmp_path, monkeypatch):
    path = tmp_path / "t.h5"
    path.write_bytes(open(token_file.path, "rb").read())
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import h5py; file = h5py.File({str(path)!r}, 'r+'); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match="another program has it open for writing"):
        open_tokens(path)
    holder.communicate(b"\n")
    real = h5py.File

    def failing(number, every=False):
        def file(*args, locking=None, **kwargs):
            if locking is not False or every:
                raise OSError(
                    number,
                    f"Unable to synchronously open file (unable to lock file, errno = {number}, error message = '...')",
                )
            return real(*args, locking=locking, **kwargs)

        return file

    for number in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # no locks there: read all the same
        monkeypatch.setattr(h5py, "File", failing(number))
        assert open_tokens(path).fingerprint == token_file.fingerprint
    monkeypatch.setattr(
        h5py,
        "File",
        lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "Unable to open (file read failed, errno = 5)")),
    )
    with pytest.raises(OSError, match="Input/output error") as refused:
        open_tokens(path)
    assert refused.value.filename == str(path) and not isinstance(refused.value, UserError)
    monkeypatch.setattr(
        "builtins.open",
        lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied", str(path))),
    )
    with pytest.raises(PermissionError):
        open_tokens(path)
