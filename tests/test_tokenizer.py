"""The tokenizer wrapper: exact round trips, BOS that no text can produce, folders of other writers, a stable
fingerprint."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from modules import tokenizer
from modules.system.errors import UserError
from modules.tok_utils import create_tokenizer
from modules.tok_utils.encoder import fast_tokenizer
from tests.tok_texts import library_tokenizer, llama2_like

TEXT = "The cat isn't on the mat; the café's 12 cats are.\n\n\tÀ bientôt, 你好 🙂 …\n" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    return create_tokenizer(place / "text.txt", place, tokenizer_name="small", vocab_size=400)


@pytest.fixture(scope="module")
def toki(folder):
    return tokenizer.get_tokenizer(m_path=str(folder))


def save(folder, definition, **config):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tokenizer.get_tokenizer(folder)


def test_tokenize_gives_one_row_of_longs(toki):
    tokens = toki.tokenize("Hello, world!")
    assert tokens.dtype == torch.long and tokens.shape == (1, tokens.numel()) and tokens.numel() > 1
    assert toki.detokenize(tokens) == toki.detokenize(tokens[0]) == "Hello, world!"
    assert toki.tokenize("").shape == (1, 0) and toki.detokenize(toki.tokenize("")) == ""


@given(st.text())
def test_any_text_comes_back(toki, text):
    tokens = toki.tokenize(text)
    assert toki.detokenize(tokens) == text
    assert (tokens < toki.vocab_size).all()


def test_a_written_bos_is_text(toki):
    text = "a<|endoftext|>b <|endoftext|>"
    tokens = toki.tokenize(text)
    assert toki.bos_id == 0 and 0 not in tokens
    assert toki.detokenize(tokens) == text
    assert toki.detokenize(torch.tensor([[0]])) == "<|endoftext|>"


def test_lone_surrogates_are_refused(toki):
    with pytest.raises(UserError, match="surrogate"):
        toki.tokenize("a\ud800b")


def test_transformers_opens_the_folder(folder, toki):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert theirs(TEXT)["input_ids"] == toki.tokenize(TEXT)[0].tolist()
    assert theirs.decode(theirs(TEXT)["input_ids"]) == TEXT
    assert theirs.bos_token_id == 0 and len(theirs) == toki.vocab_size


def test_merges_as_strings_and_as_pairs_are_one_tokenizer(tmp_path, toki):
    pairs = tokenizer.merge_pairs(toki.definition)
    as_strings = save(
        tmp_path / "strings",
        toki.definition | {"model": toki.definition["model"] | {"merges": [" ".join(pair) for pair in pairs]}},
    )
    as_pairs = save(tmp_path / "pairs", toki.definition | {"model": toki.definition["model"] | {"merges": pairs}})
    assert as_strings.encode(TEXT) == as_pairs.encode(TEXT) == toki.encode(TEXT)
    assert as_strings.fingerprint == as_pairs.fingerprint == toki.fingerprint


def test_the_fingerprint_sees_what_changes_ids_and_nothing_else(tmp_path, toki):
    model = toki.definition["model"]
    swapped = model["merges"][1::-1] + model["merges"][2:]
    different = [
        {"model": model | {"merges": swapped}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": toki.definition["pre_tokenizer"] | {"add_prefix_space": True}},
        {"pre_tokenizer": toki.definition["pre_tokenizer"] | {"use_regex": False}},
        {"model": model | {"ignore_merges": True}},
    ]
    prints = [save(tmp_path / str(i), toki.definition | change).fingerprint for i, change in enumerate(different)]
    assert len({*prints, toki.fingerprint}) == len(different) + 1
    spelled = {key: value for key, value in toki.definition["pre_tokenizer"].items() if key != "use_regex"}
    same = [
        {"truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}},
        {
            "model": {
                key: value for key, value in model.items() if key not in ("dropout", "byte_fallback", "ignore_merges")
            }
        },
        {"pre_tokenizer": spelled},
    ]
    for i, change in enumerate(same):
        other = save(tmp_path / f"same{i}", toki.definition | change)
        assert other.fingerprint == toki.fingerprint and other.encode(TEXT) == toki.encode(TEXT)


def test_bos_of_other_folders(tmp_path, toki):
    definition = json.loads(json.dumps(toki.definition).replace("<|endoftext|>", "<s>"))
    assert save(tmp_path / "named", definition, bos_token="<s>").bos_id == 0
    assert save(tmp_path / "named_by_object", definition, bos_token={"content": "<s>"}).bos_id == 0
    with pytest.raises(UserError, match="bos_token"):
        save(tmp_path / "unnamed", definition).bos_id  # noqa: B018


def test_a_tokenizer_of_another_kind_of_bpe_loads(tmp_path):
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    (tmp_path / "other").mkdir()
    backend.save(str(tmp_path / "other" / "tokenizer.json"))
    toki = tokenizer.get_tokenizer(tmp_path / "other")
    assert toki.detokenize(toki.tokenize("the cats are on the mat")) == "the cats are on the mat"
    assert toki.vocab_size == backend.get_vocab_size()


KINDS = {
    "byte-level": dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel()),
    "byte-level after a blank": dict(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True), decoder=decoders.ByteLevel()
    ),
    "byte-level without a decoder": dict(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "lower case": dict(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        normalizer=normalizers.Lowercase(),
    ),
    "metaspace": dict(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()),
    "metaspace with bytes": dict(
        pre_tokenizer=pre_tokenizers.Metaspace(),
        byte_fallback=True,
        decoder=decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ),
    "llama 2": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_join_to_the_text(tmp_path, kind):
    toki = llama2_like(tmp_path, [TEXT]) if kind == "llama 2" else library_tokenizer(tmp_path, [TEXT], **KINDS[kind])
    pieces = toki.token_bytes()
    text = "the cats aren't on the mats; 12 mats\n\n\tare 你好 🙂 …" + (
        "\x00 Ωß" if KINDS[kind] is None or "byte_fallback" in KINDS[kind] else ""
    )
    joined = b"".join(pieces[i] for i in toki.encode(text)).decode("utf-8")
    assert joined.removeprefix(" ") == text and len(pieces) == toki.vocab_size
    assert joined == text or kind in ("byte-level after a blank", "metaspace", "metaspace with bytes", "llama 2")
    assert toki.round_trip(text)[0] == toki.round_trip(text)[1]


@pytest.mark.parametrize(
    "kind, parts",
    {
        "neither": dict(pre_tokenizer=pre_tokenizers.WhitespaceSplit(), decoder=decoders.BPEDecoder()),
        "do not add up": dict(
            pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.Metaspace()
        ),
        "add up to": dict(pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.ByteLevel()),
    }.items(),
)
def test_where_the_bytes_are_not_known_there_are_none_and_it_is_said_once(tmp_path, capfd, kind, parts):
    toki = library_tokenizer(tmp_path, [TEXT], **parts)
    assert toki.token_bytes() is None and toki.token_bytes() is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and kind in said and "nothing that needs them is shown" in said


def test_dropout_is_switched_off_and_said(tmp_path, toki, capfd):
    model = toki.definition["model"]
    dropping = save(tmp_path / "dropping", toki.definition | {"model": model | {"dropout": 0.5}})
    assert "dropout 0.5" in capfd.readouterr().err
    assert (
        all(dropping.encode(TEXT) == toki.encode(TEXT) for _ in range(5)) and dropping.fingerprint == toki.fingerprint
    )
    assert save(tmp_path / "zero", toki.definition | {"model": model | {"dropout": 0.0}}).encode(TEXT) == toki.encode(
        TEXT
    )
    assert not capfd.readouterr().err


def test_bos_is_text_where_the_folder_does_not_call_it_special(tmp_path, toki):
    (bos,) = toki.definition["added_tokens"]
    other = save(tmp_path / "plain", toki.definition | {"added_tokens": [bos | {"special": False}]})
    assert other.encode("a<|endoftext|>b") == toki.encode("a<|endoftext|>b") and other.bos_id == 0
    named = json.loads(
        json.dumps(toki.definition | {"added_tokens": [bos | {"special": False}]}).replace("<|endoftext|>", "<s>")
    )
    assert 0 not in save(tmp_path / "named", named, bos_token="<s>").encode("a<s>b")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        tokenizer.get_tokenizer(tmp_path / "missing")
    with pytest.raises(UserError, match="found none"):
        tokenizer.get_tokenizer(tmp_path)
    for content, message in (
        ("{", "expected JSON"),
        ("[]", "no model"),
        ('{"model": {"type": "WordPiece"}}', "WordPiece"),
        ('{"model": {"vocab": {}}}', "without merges"),
        ('{"model": {"type": "BPE", "vocab": [], "merges": []}}', "model.vocab: expected a dictionary"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a z"]}}', "not a tokenizer"),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=message):
            tokenizer.get_tokenizer(tmp_path)


def test_the_tokenizer_that_ships(monkeypatch):
    """The README's example, from the repository's folder."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    toki = tokenizer.get_tokenizer(m_path="modules/tokenizers/en_tokenizer")
    assert toki.vocab_size == 50257 and toki.bos_id == 0
    tokenized = toki.tokenize("Hello, world!")
    assert toki.detokenize(tokenized) == "Hello, world!" and tokenized.shape[1] < 8
    assert not isinstance(fast_tokenizer(toki), str)
