"""The cache of words: it splits as the library does, and remembers without mistaking one word for another."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from modules.tok_utils import word_cache
from modules.tok_utils.word_cache import WordCache, keys_of, words_of
from tests.tok_texts import hard_text, sample_text

WHITE_SPACE = "\t\n\x0b\x0c\r \x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


@settings(max_examples=1000, deadline=None)  # the first example waits for the table of classes
@given((hard_text | st.text(max_size=200)).filter(bool))
def test_words_are_those_of_the_library(text):
    data = text.encode("utf-8")
    expected = [
        word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    ]  # a character a byte
    starts, is_space = words_of(data)
    words = [data[start:stop].decode("utf-8") for start, stop in pairwise([*starts, len(data)])]
    assert [len(word.encode("utf-8")) for word in words] == [len(word) for word in expected]
    assert is_space.tolist() == [not word.strip(WHITE_SPACE) for word in words]


@settings(max_examples=300)
@given(st.lists(st.binary(min_size=1, max_size=15), min_size=1, max_size=30))
def test_short_words_have_keys_of_their_own(words):
    lengths = np.array([len(word) for word in words])
    keys = list(
        zip(*(part.tolist() for part in keys_of(b"".join(words), np.cumsum(lengths) - lengths, lengths)), strict=True)
    )
    assert all((keys[i] == keys[j]) == (words[i] == words[j]) for i in range(len(words)) for j in range(i))


def numbered(text: str) -> np.ndarray:
    """An encoder whose ids show every character: a newline is 10."""
    return np.array([ord(character) for character in text], dtype=np.uint32)


@pytest.mark.parametrize("row_bits", [1, 4, 12])
def test_what_is_remembered_is_right_however_small_the_table(monkeypatch, row_bits):
    monkeypatch.setattr(word_cache, "ROW_BITS", row_bits)
    cache = WordCache(numbered, numbered, np.dtype(np.uint32))
    for seed in range(20):
        text = sample_text(3_000, seed)
        assert cache.encode(text).tolist() == numbered(text).tolist()


def test_a_word_that_came_before_is_not_encoded_again():
    asked = []

    def encode(text: str) -> np.ndarray:
        asked.append(text)
        return numbered(text)

    cache = WordCache(encode, encode, np.dtype(np.uint32))
    cache.encode("one two\n")
    asked.clear()
    assert cache.encode("two one two six\n").tolist() == numbered("two one two six\n").tolist()
    assert "".join(asked).split() == [
        "two",
        "one",
        "six",
    ]  # "one" had a beginning, not a blank, before it; " two" is known
