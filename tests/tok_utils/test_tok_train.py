"""Training a tokenizer: the library's own result on the whole text, whatever the feed, and the same sample each
time."""

import gzip
import json

import pytest

from modules.system.errors import UserError
from modules.tok_utils import create_custom_tokenizer, create_tokenizer
from modules.tokenizer import get_tokenizer, merge_pairs
from tests.tok_texts import sample_text, trained


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
    split = create_custom_tokenizer.LINE_BREAK.split
    monkeypatch.setattr(
        create_custom_tokenizer,
        "LINE_BREAK",
        type("Spy", (), {"split": lambda _, text: read.append(text) or split(text)})(),
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
