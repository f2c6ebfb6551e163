"""The fast encoder against the library: the same ids on every text, and only for tokenizers of which that holds."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.tok_utils.encoder import Encoder, id_dtype, why_not_fast
from modules.tokenizer import BYTE_OF_CHARACTER, get_tokenizer, merge_pairs
from tests.tok_texts import hard_text, sample_text, trained


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("toki"), [sample_text(200_000)], 2000)


@pytest.fixture(scope="module")
def fast(toki):
    assert why_not_fast(toki) is None
    return Encoder(toki, fast=True)


@settings(max_examples=500, deadline=None)  # the first example waits for the table of classes
@given(hard_text | st.text(alphabet="ab", max_size=300) | st.text(alphabet="the cat\n", max_size=300))
def test_same_ids(toki, fast, text):
    assert fast.encode(text).tolist() == toki.encode(text)


@pytest.mark.parametrize("alphabet", ["a", "ab", "the", "é你", "019", " ", " \n\t", "!?.'"])
def test_same_ids_in_long_runs(toki, fast, alphabet):
    """Runs beyond tiktoken's switch to another merge loop, and of white space beyond what its regex engine can hold."""
    for length in (99, 499, 501, 5000, 400_000):
        text = "".join(np.random.default_rng(length).choice(list(alphabet), length))
        assert fast.encode(text + "x").tolist() == toki.encode(text + "x")


def test_same_ids_in_prose(toki, fast):
    text = sample_text(500_000, seed=5)
    ids = fast.encode(text)
    assert ids.dtype == np.uint16 and ids.tolist() == toki.encode(text)


def test_a_written_special_token_is_text(toki, fast):
    assert 0 not in fast.encode("a<|endoftext|>b").tolist()


def test_both_libraries_have_the_same_classes(tmp_path):
    """Letter, digit, white space or other, for each character of the planes that have any: merges over a border show
    whether there is one."""
    characters = list(BYTE_OF_CHARACTER)
    merges = [[first, second] for first in "a1!" for second in characters]
    tokens = characters + ["".join(merge) for merge in merges]
    definition = {
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    toki = get_tokenizer(tmp_path)
    assert why_not_fast(toki) is None
    fast = Encoder(toki, fast=True)
    for plane, step in ((0, 1), (1, 1), (2, 16), (3, 16), (14, 16)):  # the latter are CJK ideographs, and tags
        for start in range(plane << 16, plane + 1 << 16, 1 << 12):
            block = [chr(code) for code in range(start, start + (1 << 12), step) if not 0xD800 <= code < 0xE000]
            text = "".join(f"a{c}\n1{c}\n!{c}\n" for c in block)
            assert fast.encode(text).tolist() == toki.encode(text)


def test_tokenizers_of_gpt2s_kind_are_fast(toki, tmp_path):
    """Ids in any order, the special token last, merges as strings: as published."""
    model = toki.definition["model"]
    count = len(model["vocab"])
    assert count % 7
    vocab = {token: (i * 7 + 3) % count for token, i in model["vocab"].items()}
    definition = toki.definition | {
        "model": model | {"vocab": vocab, "merges": [" ".join(pair) for pair in merge_pairs(toki.definition)]}
    }
    definition["added_tokens"] = [token | {"id": vocab[token["content"]]} for token in definition["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    other = get_tokenizer(tmp_path)
    assert why_not_fast(other) is None
    text = sample_text(50_000, seed=2)
    assert Encoder(other, fast=True).encode(text).tolist() == other.encode(text) != toki.encode(text)


def test_what_is_not_fast(toki, tmp_path):
    model, split, special = (
        toki.definition["model"],
        toki.definition["pre_tokenizer"],
        toki.definition["added_tokens"][0],
    )
    merges = merge_pairs(toki.definition)
    two_ways = next(
        [left, right]
        for token in ("".join(pair) for pair in merges)
        for i in range(1, len(token))
        if (left := token[:i]) in model["vocab"]
        and (right := token[i:]) in model["vocab"]
        and [left, right] not in merges
    )
    last = max(model["vocab"].values()) + 1
    # "abc" made of a, bc though ab is merged first: it cannot come about, and tiktoken would make it all the same.
    unreachable = {
        "vocab": model["vocab"] | {"qz": last, "zq": last + 1, "qzq": last + 2},
        "merges": merges + [["q", "z"], ["z", "q"], ["q", "zq"]],
    }
    changes = {
        "normalizes": {"normalizer": {"type": "NFC"}},
        "pattern": {"pre_tokenizer": split | {"add_prefix_space": True}},
        "pattern alone": {"pre_tokenizer": split | {"use_regex": False}},
        "does not split": {"pre_tokenizer": None},
        "ignore_merges": {"model": model | {"ignore_merges": True}},
        "not special": {"added_tokens": [special, special | {"id": 5, "content": "the", "special": False}]},
        "256 bytes": {"model": model | {"vocab": {key: i for key, i in model["vocab"].items() if key != "q"}}},
        "same token": {"model": model | {"merges": merges + [two_ways]}},
        "encode to themselves": {"model": model | unreachable},
    }
    for i, (message, change) in enumerate(changes.items()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "tokenizer.json").write_text(json.dumps(toki.definition | change))
        assert message in why_not_fast(get_tokenizer(tmp_path / str(i)))


def test_random_merge_lists_are_judged_rightly(tmp_path):
    """Of merge lists drawn at random some are accepted, some not; those accepted encode every short text as the library
    does."""
    accepted = 0
    rng = np.random.default_rng(0)
    for trial in range(60):
        tokens, merges = list("ab"), []
        for _ in range(8):
            pair = [tokens[i] for i in rng.integers(len(tokens), size=2)]
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
                merges.append(pair)
        vocab = {token: i for i, token in enumerate(dict.fromkeys([*BYTE_OF_CHARACTER, *tokens]))}
        (tmp_path / "tokenizer.json").write_text(
            json.dumps(
                {
                    "model": {"type": "BPE", "vocab": vocab, "merges": merges},
                    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                }
            )
        )
        toki = get_tokenizer(tmp_path)
        texts = ["".join(letters) for length in (1, 5, 9) for letters in itertools.product("ab", repeat=length)]
        if why_not_fast(toki) is None:
            accepted += 1
            fast = Encoder(toki, fast=True)
            assert [fast.encode(text).tolist() for text in texts] == [toki.encode(text) for text in texts]
    assert 5 < accepted < 60


def test_the_type_of_ids():
    assert [id_dtype(size) for size in (257, 65536, 65537)] == [np.uint16, np.uint16, np.uint32]
