"""The tokenizer: byte-level BPE saved as a Hugging Face folder, behind three methods.

    toki = get_tokenizer(m_path="modules/tokenizers/en_tokenizer")
    tokens = toki.tokenize("Hello, world!")      # LongTensor [1, seq_len]
    toki.detokenize(tokens)                      # "Hello, world!"

A folder needs only its `tokenizer.json`; nothing is fetched from a hub. Ours come from
`create_tokenizer` in `modules/tok_utils/create_custom_tokenizer.py`; folders that others saved
load as well, with merges as strings (`"a b"`) or as pairs (`["a", "b"]`).

Here the `tokenizers` library does the work: it defines the ids. Whole corpora go through
`modules/tok_utils/encoder.py`, which gives the same ids a hundred times faster.
`torch` is imported where a tensor is made, so that the processes that encode a corpus
need not hold its hundreds of megabytes.

Two things in a folder are not taken as they are, so that a text has one series of ids and BOS stands for the start of a
window alone: dropout of merges is switched off, and a BOS that is no special token there is made one, so that its name
written in a text is text.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tokenizers
from pydantic import Field, field_validator, model_validator

from modules.system.console import tell
from modules.system.errors import UserError
from modules.system.schema import Schema, checked, shown

if TYPE_CHECKING:
    import torch

BOS_TOKEN = "<|endoftext|>"
SENTENCEPIECE_BLANK = "\u2581"
# Options of a tokenizer.json that mean the same spelled out or left out.
DEFAULTS = {"use_regex": True, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


# ten times the largest vocabularies in use; beyond it stands damage or a slip, and memory for every id is asked for
MOST_IDS = 10_000_000
VERIFIED_TOKENS = 500  # whose text is encoded again to verify the bytes of tokens
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece names the token of one byte

Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


def _an_id_each(vocab: dict[str, int]) -> dict[str, int]:
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two tokens have the same id")
    return vocab


class BpeModel(Schema):
    """ "model" of a tokenizer.json."""

    type: Literal["BPE"] = "BPE"  # old files leave it out
    vocab: Annotated[dict[str, Id], Field(min_length=1)]
    merges: list[Any]
    dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None

    _ids = field_validator("vocab")(_an_id_each)

    @field_validator("merges")
    @classmethod
    def _of_two_tokens(cls, merges: list[Any]) -> list[Any]:
        if all(type(merge) is list and [*map(type, merge)] == [str, str] for merge in merges):
            return merges  # a tenth of a second sooner
        for number, merge in enumerate(merges):
            tokens = merge.split(" ", 1) if isinstance(merge, str) else merge
            if not isinstance(tokens, list) or len(tokens) != 2 or not all(isinstance(token, str) for token in tokens):
                raise ValueError(f"entry {number}: expected two tokens, found {shown(merge)}")
        return merges

    @model_validator(mode="after")
    def _merges_have_the_prefix(self):
        """The library aborts the process where they do not."""
        prefix = self.continuing_subword_prefix
        if prefix and not all(
            (merge.split(" ", 1) if isinstance(merge, str) else merge)[-1].startswith(prefix) for merge in self.merges
        ):
            raise ValueError(
                "continuing_subword_prefix: expected what the second token of every merge begins with, "
                f"found {shown(prefix)}"
            )
        return self


class WordLevelModel(Schema):
    """The same of a tokenizer of whole words (tok_utils/symbols.py)."""

    type: Literal["WordLevel"]
    vocab: Annotated[dict[str, Id], Field(min_length=1)]
    unk_token: str

    _ids = field_validator("vocab")(_an_id_each)


class AddedToken(Schema):
    """An entry of "added_tokens"."""

    id: Id
    content: Annotated[str, Field(min_length=1)]
    special: bool = False


class Definition(Schema):
    """What a tokenizer.json must hold for us; whether the rest makes sense, the library says."""

    model: BpeModel
    added_tokens: list[AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class WordsDefinition(Definition):
    """The same of a tokenizer of whole words."""

    model: WordLevelModel


class NamedToken(Schema):
    """A token as older folders write it: {"content": "<s>", ...}."""

    content: str


class FolderConfig(Schema):
    """What of a tokenizer_config.json is read."""

    bos_token: str | NamedToken | None = None
    eos_token: str | NamedToken | None = None

    def names(self) -> Iterator[str]:
        """What may stand for BOS, the best first."""
        yield BOS_TOKEN
        for token in (self.bos_token, self.eos_token):
            if token is not None:
                yield token if isinstance(token, str) else token.content


class Tokenizer:
    """A loaded tokenizer folder. `definition` is its tokenizer.json, `backend` the `tokenizers.Tokenizer` made of
    it."""

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
        """The text of `tokens`, [1, seq_len] or [seq_len]. BOS shows as `<|endoftext|>`, a character cut in two as
        U+FFFD."""
        return self.backend.decode(tokens.flatten().tolist(), skip_special_tokens=False)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: every id is below it."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def bos_id(self) -> int:
        """The id that stands before every window: `<|endoftext|>` (0 in ours), else what the folder names as its bos or
        eos token."""
        for name in _folder_config(self.folder).names():
            if (token_id := self.backend.token_to_id(name)) is not None:
                return token_id
        raise UserError(
            f"{self.folder}: no {BOS_TOKEN} in the vocabulary, and no bos_token in tokenizer_config.json; "
            "windows need one"
        )

    @functools.cached_property
    def unk_id(self) -> int | None:
        """The id that stands for whatever the vocabulary lacks; None where there is none, and what it lacks is left
        out."""
        name = self.definition["model"].get("unk_token")
        return self.backend.token_to_id(name) if name else None

    def round_trip(self, text: str, ids: list[int] | None = None) -> tuple[str, str]:
        """What the ids of `text` should say and what they do say: two equal texts where nothing is lost.

        What the tokenizer's own normalizer makes of the text counts as the text, and a blank that it puts before it is
        none of it.
        """
        ids, pieces = self.encode(text) if ids is None else ids, self.token_bytes()
        back = (
            b"".join(pieces[i] for i in ids).decode("utf-8", "replace")
            if pieces
            else self.backend.decode(ids, skip_special_tokens=False)
        )
        if back == text:
            return text, back
        normalizer = self.backend.normalizer
        wanted = normalizer.normalize_str(text) if normalizer else text
        return _without_blank(wanted), _without_blank(back)

    def token_bytes(self) -> list[bytes] | None:
        """The bytes that each id stands for, by id; a special token's are those of its name.

        None where the folder does not tell, which is said once: then nothing that needs them (bits per byte of a part
        of the text, classes of tokens, coloured pages) can be had.
        """
        found = self._token_bytes
        return None if isinstance(found, str) else found

    @functools.cached_property
    def _token_bytes(self) -> list[bytes] | str:
        """The bytes of each id, verified; or why there are none, which is told here."""
        spell = _spelling(self.definition)
        if isinstance(spell, str):
            reason = spell
        else:
            added = {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}
            tokens = [self.backend.id_to_token(i) or "" for i in range(self.vocab_size)]
            pieces = [added[i].encode("utf-8") if i in added else spell(token) for i, token in enumerate(tokens)]
            if self._gives_the_text(spell, pieces, [i for i, token in enumerate(tokens) if token and i not in added]):
                return pieces
            reason = "the bytes of its tokens do not add up to the text that they stand for"
        tell(
            f"{self.folder}: {reason}; so there are no bytes of single tokens, and nothing that needs them is shown",
            sys.stderr,
        )
        return reason

    def _gives_the_text(self, spell: Callable[[str], bytes], pieces: list[bytes], ids: list[int]) -> bool:
        """Whether `pieces` are what the library decodes the tokens `ids` to, and join to a text again when it is
        encoded."""
        decoded = self.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        if self.backend.decoder is not None and not all(
            pieces[i].decode("utf-8", "replace") in (text, " " + text) for i, text in zip(ids, decoded, strict=True)
        ):
            return False
        some = ids[:: max(1, len(ids) // VERIFIED_TOKENS)]
        text = b"".join(pieces[i] for i in some).decode("utf-8", "ignore")
        joined = b"".join(pieces[i] for i in self.encode(text))
        normalized = (
            spell(self.backend.normalizer.normalize_str(text)) if self.backend.normalizer else text.encode("utf-8")
        )
        return joined in (text.encode("utf-8"), b" " + text.encode("utf-8"), normalized, b" " + normalized)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that determines the ids: the same for two folders that encode alike by construction.

        Computed from tokenizer.json itself, not from what the library writes, so that an upgrade of the library does
        not change it. Nulls and defaults count as absent, merges as strings equal merges as pairs. What only decodes,
        pads or truncates is left out.
        """
        model = self.definition["model"]
        large = {"vocab": model["vocab"]}  # no defaults in them
        if "merges" in model:
            large["merges"] = merge_pairs(self.definition)
        parts = _without_defaults(
            {"model": {key: value for key, value in model.items() if key not in large}}
            | {key: self.definition.get(key) for key in ("normalizer", "pre_tokenizer", "added_tokens")}
        )
        parts["model"].update(large)
        canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def get_tokenizer(m_path: str | os.PathLike) -> Tokenizer:
    """Load the tokenizer saved in the folder `m_path` (relative to the working directory, or absolute).

    Raises UserError where there is no readable tokenizer.json of a BPE tokenizer.
    """
    toki, dropout = _load_once(str(m_path), _digest(Path(m_path)))
    if dropout:
        tell(
            f"{m_path}: drops merges at random (dropout {dropout}); switched off here, "
            "so that a text has one series of ids",
            sys.stderr,
        )
    return toki


@functools.lru_cache(maxsize=4)
def _load_once(m_path: str, _: bytes) -> tuple[Tokenizer, float | None]:
    """`load`, unless these very files were loaded already: large vocabularies take a third of a second."""
    return load(m_path)


def _digest(folder: Path) -> bytes:
    """Of all that is read of a tokenizer folder; of nothing where it cannot be read, which `load` then says."""
    digest = hashlib.blake2b()
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        with contextlib.suppress(OSError):
            digest.update(path.read_bytes())
        digest.update(b" ")
    return digest.digest()


def load(m_path: str | os.PathLike) -> tuple[Tokenizer, float | None]:
    """`get_tokenizer` without a word: the tokenizer, and the dropout that was switched off."""
    folder = Path(m_path)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{folder}: expected a tokenizer folder with a tokenizer.json in it; found "
            f"{'none' if folder.exists() else 'no folder'}. Make one with create_tokenizer "
            "(tokenize_to_h5.py), or use modules/tokenizers/en_tokenizer"
        )
    definition = _read_json(path)
    model = definition.get("model") if isinstance(definition, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{path}: expected a BPE tokenizer, found no model")
    words = model.get("type") == "WordLevel"
    if not words and (model.get("type", "BPE") != "BPE" or "merges" not in model):
        found = model.get("type", "a model without merges")
        raise UserError(f"{path}: expected a BPE tokenizer, found {shown(found)}")
    checked(WordsDefinition if words else Definition, definition, str(path))
    dropout = model.get("dropout")
    if dropout:
        definition["model"] = {key: value for key, value in model.items() if key != "dropout"}
    names = {token["content"] for token in definition.get("added_tokens") or ()}
    bos = next((name for name in _folder_config(folder).names() if name in names), None)
    used = definition | {
        "added_tokens": [
            token | {"special": True} if token["content"] == bos else token
            for token in definition.get("added_tokens") or ()
        ]
    }
    changed = dropout or used.get("added_tokens") != (definition.get("added_tokens") or [])
    try:
        backend = (
            tokenizers.Tokenizer.from_str(json.dumps(used)) if changed else tokenizers.Tokenizer.from_file(str(path))
        )
        backend.encode("a b")
    except (
        BaseException
    ) as error:  # the library raises plain Exception for whatever it dislikes in the file; its panics are none
        if (
            not isinstance(error, Exception)
            and type(error).__name__ != "PanicException"
            or isinstance(error, MemoryError)
        ):
            raise
        raise UserError(f"{path}: not a tokenizer that the tokenizers library reads: {first_line(error)}") from None
    return Tokenizer(folder, definition, backend), dropout


def merge_pairs(definition: dict) -> list[list[str]]:
    """The merges of a tokenizer.json in order of rank, as pairs whichever way they are written."""
    merges = definition["model"].get("merges", ())  # a tokenizer of words has none
    return [merge.split(" ", 1) if isinstance(merge, str) else list(merge) for merge in merges]


def _folder_config(folder: Path) -> FolderConfig:
    path = folder / "tokenizer_config.json"
    return checked(FolderConfig, _read_json(path), str(path)) if path.exists() else FolderConfig()


def _read_json(path: Path):
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or brackets in brackets without end
        raise UserError(f"{path}: expected JSON: {first_line(error)}") from None


def _spelling(definition: dict) -> Callable[[str], bytes] | str:
    """How a token of the vocabulary is turned into its bytes, by the kind of decoder; or why that is not known."""
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if definition["model"].get(option):
            return f"its model has {option}"
    steps = steps_of(definition.get("decoder") or definition.get("pre_tokenizer"))
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds == {"Fuse"}:
        return lambda token: token.encode("utf-8")
    if kinds == {"WhitespaceSplit"} and definition["model"].get("type") == "WordLevel":
        return lambda token: b" " + token.encode("utf-8")  # the library puts blanks between them
    replaced = [
        (step.get("replacement", SENTENCEPIECE_BLANK), " ") for step in steps if step.get("type") == "Metaspace"
    ]
    replaced += [
        (step["pattern"]["String"], step["content"])
        for step in steps
        if step.get("type") == "Replace" and isinstance(step.get("pattern"), dict) and "String" in step["pattern"]
    ]
    if not replaced:
        return f"its decoder ({', '.join(sorted(map(str, kinds))) or 'none'}) is neither byte-level nor SentencePiece's"

    def spell(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := BYTE_NAME.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode("utf-8")

    return spell


def _byte_level(token: str) -> bytes:
    """The bytes that a byte-level token is written for; a token that holds other characters is written as it is."""
    try:
        return token.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8")


def steps_of(part: dict | None) -> list[dict]:
    """The steps of a decoder or pre-tokenizer, those inside sequences too."""
    if part is None:
        return []
    inner = part.get("decoders", part.get("pretokenizers")) if part.get("type") == "Sequence" else None
    return [step for each in inner for step in steps_of(each)] if inner is not None else [part]


def _without_blank(text: str) -> str:
    """A text without the blank that SentencePiece puts before it, and with its own blanks as blanks."""
    return text.replace(SENTENCEPIECE_BLANK, " ").removeprefix(" ")


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters: those printable in Latin-1 stand for themselves, the others
    for U+0100 onward."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _Latin1(dict):
    """For `str.translate`: the Latin-1 character of the byte that a character stands for, one beyond Latin-1 for
    others."""

    def __missing__(self, code: int) -> int:
        return 0x100


BYTE_OF_CHARACTER = _byte_of_character()
_LATIN_1 = _Latin1({ord(character): byte for character, byte in BYTE_OF_CHARACTER.items()})


def _without_defaults(value: Any) -> Any:
    """`value` without what says nothing, at every depth: writers differ in whether they spell it out."""
    if isinstance(value, dict):
        return {
            key: _without_defaults(item)
            for key, item in value.items()
            if item is not None and DEFAULTS.get(key) is not item
        }
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value
