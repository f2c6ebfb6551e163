r"""Text to ids at some ten times the speed of `tokenizers`, with the same ids.

`tiktoken` does the same byte-level BPE from a table of ranks, and `word_cache.py` spares it the words that came before.
Three things make it give the ids of a tokenizer.json:

- Ranks are the order of the merges, and what it returns is mapped back to ids through a table.
- It merges two neighbours whenever their concatenation has a rank, where tokenizer.json allows listed pairs only. The two agree on
  every text if every merged token encodes to itself, which `why_not_fast` checks. (Take the first moment at which they
  part: neighbours x, y that join to token t without (x, y) being a merge. Nothing has merged across the ends of x y so
  far, so merging t's bytes alone went through the same states and stands at x, y too, unable to become t.)
- GPT-2's pattern splits alike in both: their classes agree on all 1.1 M code points (tests/test_tok_encoder.py).

Two details are worth a factor of 3 to tiktoken (8.6 -> 25 MB/s a core on docstrings, `tokenizers` 1.1-2.3): the
alternatives without look-ahead stand in one group, which the regex engine then runs as one automaton; and one special
token is declared (and never allowed: written in a text it is text), for with none tiktoken looks for the empty string
at every byte.

Where a tokenizer is anything else than this (another pattern, a normalizer, ...), `tokenizers` itself encodes.
"""

import numpy as np
import tiktoken

from modules.tok_utils.word_cache import WordCache
from modules.tokenizer import BOS_TOKEN, BYTE_OF_CHARACTER, Tokenizer, merge_pairs

GPT2_PATTERN = r"(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"


class Encoder:
    """Encodes long texts: by tiktoken behind a cache of words where `fast`, by `tokenizers` otherwise; the ids are the
    same."""

    def __init__(self, toki: Tokenizer, fast: bool):
        self._toki = toki
        self._dtype = id_dtype(toki.vocab_size)
        self._cache = None
        if fast:
            self._tiktoken, self._id_of_rank = _tiktoken_of(toki)
            self._cache = WordCache(self._by_tiktoken, self._by_library, self._dtype)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, [tokens], in the dtype that `id_dtype` gives."""
        return self._cache.encode(text) if self._cache else self._by_library(text)

    def _by_tiktoken(self, text: str) -> np.ndarray:
        return self._id_of_rank[self._tiktoken.encode_to_numpy(text, disallowed_special=())]

    def _by_library(self, text: str) -> np.ndarray:
        return np.array(self._toki.encode(text), dtype=self._dtype)


def id_dtype(vocab_size: int) -> np.dtype:
    """uint16 where all ids fit, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def why_not_fast(toki: Tokenizer) -> str | None:
    """What about a tokenizer keeps tiktoken from giving its ids; None where nothing does."""
    definition, model = toki.definition, toki.definition["model"]
    if definition.get("normalizer") is not None:
        return "it normalizes the text"
    split = definition.get("pre_tokenizer") or {}
    if split.get("type") != "ByteLevel" or split.get("add_prefix_space", True) or not split.get("use_regex", True):
        return "it does not split the text by GPT-2's pattern alone"
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(option):
            return f"its model has {option}"
    if not all(token.get("special") for token in definition.get("added_tokens") or ()):
        return "it has added tokens that are not special"
    if not set(BYTE_OF_CHARACTER) <= set(model["vocab"]):
        return "its vocabulary lacks some of the 256 bytes"
    merged = ["".join(pair) for pair in merge_pairs(definition)]
    if len(set(merged) | set(BYTE_OF_CHARACTER)) < len(merged) + 256:
        return "two of its merges make the same token"
    if any(len(toki.backend.model.tokenize(token)) != 1 for token in merged):
        return "some of its tokens do not encode to themselves"
    return None


def _tiktoken_of(toki: Tokenizer) -> tuple[tiktoken.Encoding, np.ndarray]:
    """An encoder of ranks (bytes first, then merges in order), and the id of each rank."""
    tokens = list(BYTE_OF_CHARACTER) + ["".join(pair) for pair in merge_pairs(toki.definition)]
    ranks = {bytes(BYTE_OF_CHARACTER[character] for character in token): rank for rank, token in enumerate(tokens)}
    vocab = toki.definition["model"]["vocab"]
    encoding = tiktoken.Encoding(
        str(toki.folder), pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={BOS_TOKEN: len(ranks)}
    )
    return encoding, np.array([vocab[token] for token in tokens], dtype=id_dtype(toki.vocab_size))
