"""Training a tokenizer: the library's own result on the whole text, whatever the feed, and the same sample each
time."""

import gzip
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from modules.system.errors import UserError
from modules.tok_utils import bpe_training, create_custom_tokenizer, create_tokenizer
from modules.tok_utils.bpe_training import LONGEST_RUN, untrained
from modules.tokenizer import get_tokenizer, merge_pairs
from tests.tok_texts import hard_text, sample_text, trained
from tests.toy import ROOT


def make(path, folder, name="small", **options):
    return get_tokenizer(create_tokenizer(path, folder, tokenizer_name=name, **({"vocab_size": 700} | options)))


@pytest.mark.parametrize(
    "text", [sample_text(300_000), sample_text(300_000).replace("\n", " "), "abc" * 1000 + "\n\n\n x" * 1000]
)
def test_the_tokenizer_is_that_of_the_whole_text_in_one_piece(tmp_path, monkeypatch, text):
    monkeypatch.setattr(create_custom_tokenizer, "FEED_BYTES", 10_000)
    (tmp_path / "t.txt").write_bytes(text.encode("utf-8"))
    ours = make(tmp_path / "t.txt", tmp_path)
    theirs = trained(tmp_path / "theirs", [text], 700)
    assert ours.fingerprint == theirs.fingerprint and merge_pairs(ours.definition) == merge_pairs(theirs.definition)


@pytest.mark.parametrize("vocab_size", [257, 258, 700, 50257])
@pytest.mark.parametrize("ends", ["\n", " ", "word", "\n\n\n"])
def test_gigabpe_and_the_library_save_the_same_bytes(tmp_path, monkeypatch, vocab_size, ends):
    """Several texts, whose ends are in the middle of what the files of gigabpe are cut by."""
    monkeypatch.setattr(create_custom_tokenizer, "FEED_BYTES", 5000)
    (tmp_path / "texts").mkdir()
    texts = [sample_text(20_000, seed) + " \n\n \t\n x" * 50 + ends for seed in range(3)]
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(text.encode("utf-8"))
    ours = make(tmp_path / "texts", tmp_path, vocab_size=vocab_size).folder
    theirs = trained(tmp_path / "theirs", texts, vocab_size).folder
    assert json.loads((ours / "tokenizer.json").read_text()) == json.loads((theirs / "tokenizer.json").read_text())
    monkeypatch.setattr(bpe_training, "gigabpe", None)
    other = make(tmp_path / "texts", tmp_path, "by_library", vocab_size=vocab_size).folder
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (ours / name).read_bytes() == (other / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by_library", "small", "texts", "theirs"]


merged_text = (
    hard_text
    | st.text("ab \n", max_size=300)
    | st.lists(st.sampled_from(["a", "aa", "aaaa", " ", "\n", "\r\n", "é", "日本"]), max_size=200).map("".join)
    | st.lists(st.text("abc", min_size=1, max_size=6), max_size=100).map(" ".join)
)


@given(st.lists(merged_text, min_size=1, max_size=4), st.sampled_from([257, 260, 300, 600, 50257]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gigabpe_gives_the_librarys_merges(tmp_path, pieces, vocab_size):
    pieces = [piece.replace("\v", "") + "x" for piece in pieces]  # where a piece ends, a word does
    ours = bpe_training._by_gigabpe(lambda: iter(pieces), vocab_size, tmp_path, 1000)
    theirs = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(pieces, trainer)
    assert ours.to_str() == theirs.to_str() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        sample_text(3000) + "a" * 9000 + " b\n",
        sample_text(3000) + "." * 4000 + "1" * 8001,
        sample_text(3000) + " " * 9000 + "b" * 5000 + "\t" * 4001,
        sample_text(3000) + "x\n" + "\n \n" * 3000 + "y",
    ],
)
def test_long_runs_are_cut_alike_for_both(tmp_path, monkeypatch, capfd, text):
    (tmp_path / "t.txt").write_bytes(text.encode("utf-8"))
    ours = make(tmp_path / "t.txt", tmp_path)
    assert "are cut at that length for training" in capfd.readouterr().err
    monkeypatch.setattr(bpe_training, "gigabpe", None)
    assert make(tmp_path / "t.txt", tmp_path, "other").fingerprint == ours.fingerprint


def test_the_quick_look_for_long_runs_misses_none():
    for run in ("a" * LONGEST_RUN, "-" * LONGEST_RUN, " " * LONGEST_RUN, "\n" * LONGEST_RUN, " \n" * LONGEST_RUN):
        assert bpe_training.may_have_long_runs(f"before\nx{run}y\nbehind")
    assert not bpe_training.may_have_long_runs(sample_text(100_000))


def test_where_gigabpe_cannot_the_library_trains_and_it_is_said(tmp_path, monkeypatch, capfd):
    (tmp_path / "t.txt").write_bytes((sample_text(20_000) + "\v" + sample_text(9)).encode("utf-8"))
    of_tabs = make(tmp_path / "t.txt", tmp_path)
    said = capfd.readouterr().err
    assert "the text has vertical tabs" in said and "the tokenizers library trains" in said
    theirs = trained(tmp_path / "theirs", [(tmp_path / "t.txt").read_bytes().decode()], 700)
    assert of_tabs.fingerprint == theirs.fingerprint
    (tmp_path / "t.txt").write_bytes(sample_text(20_000).encode("utf-8"))
    fast = make(tmp_path / "t.txt", tmp_path, "fast")
    assert "the tokenizers library trains" not in capfd.readouterr().err
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(bpe_training.shutil, "disk_usage", lambda _: full)
    assert make(tmp_path / "t.txt", tmp_path, "no_room").fingerprint == fast.fingerprint
    assert "no room for a copy of the text" in capfd.readouterr().err


def test_what_a_killed_training_left_goes_with_the_next(tmp_path):
    (tmp_path / "t.txt").write_text("a text " * 100)
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from modules.system.files import scratch_file\n"
        f"with scratch_file(Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60)
    assert len(list(tmp_path.glob(".scratch.*.tmp"))) == 1
    make(tmp_path / "t.txt", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "t.txt"]


def test_ids_are_bos_then_bytes_then_merges(tmp_path):
    (tmp_path / "t.txt").write_bytes(sample_text(100_000).encode("utf-8"))
    toki = make(tmp_path / "t.txt", tmp_path, vocab_size=500)
    vocab = toki.definition["model"]["vocab"]
    assert toki.vocab_size == 500 and sorted(vocab.values()) == list(range(500))
    assert vocab["<|endoftext|>"] == 0 and all(len(token) == 1 for token, i in vocab.items() if 1 <= i <= 256)
    assert [vocab["".join(pair)] for pair in merge_pairs(toki.definition)] == list(range(257, 500))


def test_compressed_texts_and_folders_train_alike(tmp_path):
    data = sample_text(100_000).encode("utf-8")
    for name, content in (("plain/t.txt", data), ("zipped/t.txt.gz", gzip.compress(data))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    prints = {
        make(path, tmp_path, str(i)).fingerprint
        for i, path in enumerate((tmp_path / "plain", tmp_path / "plain" / "t.txt", tmp_path / "zipped"))
    }
    assert len(prints) == 1


def test_a_sample_is_even_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(create_custom_tokenizer, "FEED_BYTES", 1000)
    # Ten tenths, each with a word of its own.
    (tmp_path / "t.txt").write_text("".join(f"word{letter * 3} " * 5000 for letter in "abcdefghij"))
    read = []
    decode = create_custom_tokenizer._decode
    monkeypatch.setattr(
        create_custom_tokenizer, "_decode", lambda *arguments: read.append(decode(*arguments)) or read[-1]
    )
    first = make(tmp_path / "t.txt", tmp_path, "first", sample_bytes=50_000)
    assert 45_000 < sum(map(len, read)) < 55_000
    sampled = "".join(read)
    counts = [sampled.count(f"word{letter * 3}") for letter in "abcdefghij"]
    assert max(counts) < 1.5 * min(counts)
    read.clear()
    assert (
        make(tmp_path / "t.txt", tmp_path, "second", sample_bytes=50_000).fingerprint == first.fingerprint
        and "".join(read) == sampled
    )
    read.clear()
    make(tmp_path / "t.txt", tmp_path, "tiny", sample_bytes=1)
    assert len(read) == 1
    read.clear()
    make(tmp_path / "t.txt", tmp_path, "all", sample_bytes=10**9)
    assert "".join(read) == (tmp_path / "t.txt").read_text()


def test_a_tokenizer_of_the_bytes_alone_is_kept_for_another_text(tmp_path, capfd):
    (tmp_path / "one.txt").write_text("0101 1010")
    (tmp_path / "two.txt").write_text("35 7 5")
    made = create_tokenizer(tmp_path / "one.txt", tmp_path, "bytes", vocab_size=257)
    assert create_tokenizer(tmp_path / "two.txt", tmp_path, "bytes", vocab_size=257) == made
    assert "using the tokenizer that is there (257 ids)" in capfd.readouterr().err


def test_a_tokenizer_that_is_there_is_kept(tmp_path, capfd):
    (tmp_path / "t.txt").write_bytes(sample_text(50_000).encode("utf-8"))
    first = make(tmp_path / "t.txt", tmp_path)
    (tmp_path / "t.txt").write_bytes(sample_text(50_000, 9).encode("utf-8"))
    assert make(tmp_path / "t.txt", tmp_path).fingerprint == first.fingerprint
    assert "using the tokenizer that is there (700 ids)" in capfd.readouterr().err
    with pytest.raises(UserError, match="of 700 ids already, and 600"):
        make(tmp_path / "t.txt", tmp_path, vocab_size=600)


def test_a_small_text_gives_fewer_ids_and_says_so(tmp_path, capfd):
    (tmp_path / "t.txt").write_text("a small text")
    toki = make(tmp_path / "t.txt", tmp_path, vocab_size=50257)
    assert 257 <= toki.vocab_size < 300
    assert f"{toki.vocab_size} ids" in capfd.readouterr().err


def test_bos_written_in_the_text_is_no_token(tmp_path):
    (tmp_path / "t.txt").write_text("<|endoftext|> " * 1000)
    toki = make(tmp_path / "t.txt", tmp_path)
    assert json.dumps(toki.definition["model"]["vocab"]).count("<|endoftext|>") == 1 and 0 not in toki.encode(
        "<|endoftext|>"
    )


def test_refusals(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(UserError, match="vocab_size: expected 257 to 10,000,000"):
        make(tmp_path / "t.txt", tmp_path, vocab_size=256)
    with pytest.raises(UserError, match="no such text"):
        make(tmp_path / "missing.txt", tmp_path)
    with pytest.raises(UserError, match="sample_bytes: expected 1"):
        make(tmp_path / "t.txt", tmp_path, sample_bytes=0)
    with pytest.raises(UserError, match="empty"):
        (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
        make(tmp_path / "empty.txt.gz", tmp_path)
    (tmp_path / "empty.txt.gz").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]
