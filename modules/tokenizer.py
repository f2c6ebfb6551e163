"""The tokenizer: byte-level BPE saved as a Hugging Face folder, behind three methods.

    toki = get_tokenizer(m_path="modules/tokenizers/en_tokenizer")
    tokens = toki.tokenize("Hello, world!")      # LongTensor [1, seq_len]
    toki.detokenize(tokens)                      # "Hello, world!"

A folder needs only its `tokenizer.json`; nothing is fetched from a hub. Ours come from
`create_tokenizer` in `modules/tok_utils/create_custom_tokenizer.py`; folders that others saved
load as well, with merges as strings (`"a b"`) or as pairs (`["a", "b"]`).

Here the `tokenizers` library does the work: it defines the ids. Whole corpora go through
`modules/tok_utils/encoder.py`, which gives the same ids several times faster.
`torch` is imported where a tensor is made, so that the processes that encode a corpus
need not hold its hundreds of megabytes.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from modules.errors import UserError

if TYPE_CHECKING:
    import torch

BOS_TOKEN = "<|endoftext|>"
# Options of a tokenizer.json that mean the same spelled out or left out.
DEFAULTS = {"use_regex": True, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


class Tokenizer:
    """A loaded tokenizer folder. `definition` is its tokenizer.json, `backend` the `tokenizers.Tokenizer` made of it."""

    def __init__(self, folder: Path, definition: dict, backend: tokenizers.Tokenizer):
        self.folder, self.definition, self.backend = folder, definition, backend
        # A special token written out in a text is text: it must not become BOS.
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()

    def tokenize(self, text: str) -> torch.Tensor:
        """The ids of `text`, LongTensor [1, seq_len]; no special token is added.

        Raises UserError for a `str` that is not Unicode text (lone surrogates).
        """
        import torch
        return torch.tensor(self.encode(text), dtype=torch.long).unsqueeze(0)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as a list, by the library itself: what every faster way must reproduce."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise UserError(f"text with a lone surrogate cannot be tokenized: {error}") from error

    def detokenize(self, tokens: torch.Tensor) -> str:
        """The text of `tokens`, [1, seq_len] or [seq_len]. BOS shows as `<|endoftext|>`, a character cut in two as U+FFFD."""
        return self.backend.decode(tokens.flatten().tolist(), skip_special_tokens=False)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: every id is below it."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def bos_id(self) -> int:
        """The id that stands before every window: `<|endoftext|>` (0 in ours), else what the folder names as its bos or eos token."""
        config_path = self.folder / "tokenizer_config.json"
        config = _read_json(config_path) if config_path.exists() else {}
        for token in (BOS_TOKEN, config.get("bos_token"), config.get("eos_token")):
            token = token.get("content") if isinstance(token, dict) else token  # older folders save {"content": "<s>", ...}
            token_id = self.backend.token_to_id(token) if token else None
            if token_id is not None:
                return token_id
        raise UserError(f"{self.folder}: no {BOS_TOKEN} in the vocabulary, and no bos_token in tokenizer_config.json; windows need one")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that determines the ids: the same for two folders that encode alike by construction.

        Computed from tokenizer.json itself, not from what the library writes, so that an upgrade of the library does not change it.
        Nulls and defaults count as absent, merges as strings equal merges as pairs. What only decodes, pads or truncates is left out.
        """
        model = self.definition["model"] | {"merges": merge_pairs(self.definition)}
        parts = {"model": model} | {key: self.definition.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}
        canonical = json.dumps(_without_defaults(parts), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def get_tokenizer(m_path: str | os.PathLike) -> Tokenizer:
    """Load the tokenizer saved in the folder `m_path` (relative to the working directory, or absolute).

    Raises UserError where there is no readable tokenizer.json of a BPE tokenizer.
    """
    folder = Path(m_path)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{folder}: expected a tokenizer folder with a tokenizer.json in it; found {'none' if folder.exists() else 'no folder'}. "
                        "Make one with create_tokenizer (tokenize_to_h5.py), or use modules/tokenizers/en_tokenizer")
    definition = _read_json(path)
    model = definition.get("model") if isinstance(definition, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:  # old files leave the type out
        found = model.get("type", "a model without merges") if isinstance(model, dict) else "no model"
        raise UserError(f"{path}: expected a BPE tokenizer, found {found}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever it dislikes in the file
        raise UserError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from error
    return Tokenizer(folder, definition, backend)


def merge_pairs(definition: dict) -> list[list[str]]:
    """The merges of a tokenizer.json in order of rank, as pairs whichever way they are written."""
    return [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in definition["model"]["merges"]]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: expected JSON: {error}") from error


def _without_defaults(value):
    """`value` without what says nothing, at every depth: writers differ in whether they spell it out."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item is not None and DEFAULTS.get(key) is not item}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value
