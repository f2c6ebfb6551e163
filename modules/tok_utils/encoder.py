"""Text to ids at some hundred times the speed of `tokenizers`, with the same ids: `gigatoken` encodes, in threads.

`tokenizers` defines the ids; `gigatoken` is trusted as far as it is verified:

- Before the work, spread samples of the text are encoded by both and compared (`inspection.check_kept`).
- Of each chunk the first SAMPLE_BYTES are encoded by both, and the bytes of all its tokens must add up to those of the
  text. So an error in how words are split or merged is met wherever it is common, and an id that stands for too few or
  too many bytes wherever it stands; a wrong id of the right length is met where a sample holds it, one place in 2,000.
- A difference ends the work and names the byte; `encoder="tokenizers"` then goes on with the library.

It is given the definition without `added_tokens`: a special token written in a text is text. A `gigatoken.Tokenizer`
works for one thread at a time, so each thread has its own; and it remembers every word that it has met, without bound,
so it is replaced by a fresh one when the process has grown by GROWTH. `encode_batch_padded` lets other threads of
Python work meanwhile, which `encode` does not, and of a `BytesSource` does not import `awkward`, a fifth of a second.

Where gigatoken does not know a tokenizer (another split, a normalizer, ...), `tokenizers` itself encodes; and so it
does the stretches of a text with characters that the two see differently: the letters, digits and marks of Unicode 17,
which gigatoken 0.10.0 knows and tokenizers 0.23.3 does not. No other character of Unicode tells them apart
(tests/tok_utils/test_tok_encoder.py goes through all).
"""

import codecs
import zlib
from pathlib import Path
from typing import NamedTuple

import gigatoken
import numpy as np
import pydantic_core

from modules.system.errors import UserError
from modules.system.processes import resident_bytes
from modules.tok_utils.cuts import last_safe_cut, pieces
from modules.tok_utils.text_source import TextInMemory
from modules.tokenizer import Tokenizer, first_line, steps_of

SAMPLE_BYTES = 1 << 11  # of each chunk that both libraries encode: a twentieth of the chunk's time
FAST_PART_BYTES = 1 << 23  # encoded at a time: ids of 32 bits are made of them
LIBRARY_PART_BYTES = 1 << 16  # tokenizers needs some 150 bytes a token
GROWTH = 3 << 27  # bytes by which the process may grow while words are remembered
LEAST_BYTES = 1 << 24  # of text between two tokenizers, which cost a tenth of a second each
BLIND_BYTES = 1 << 26  # of text for each tokenizer, where a process is not told its size
DECODED_BYTES = 1 << 16  # at a time, to see whether they are UTF-8: it stays in the processor's cache
# First and last of each run of characters that the two libraries do not give one class.
SEEN_DIFFERENTLY = (
    (0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0x1ACF, 0x1ADD), (0x1AE0, 0x1AEB),
    (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1), (0x10940, 0x10959),
    (0x10EC5, 0x10EC7), (0x10EFA, 0x10EFB), (0x11B60, 0x11B67), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6F5), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479),
)  # fmt: skip


class Encoded(NamedTuple):
    """What became of one chunk of text."""

    ids: np.ndarray  # [tokens]
    text_bytes: int  # UTF-8 bytes that the ids stand for
    text_crc32: int  # of the bytes that were read
    ids_crc32: int
    forced: list[int]  # positions in the chunk at which it was cut without a safe place to
    documents: np.ndarray | None  # uint64, the tokens with which documents begin


class NotUtf8(NamedTuple):
    """The position in a chunk of the first byte that is not UTF-8."""

    position: int


class Differs(NamedTuple):
    """The position in a chunk of the first token of gigatoken's that is not the library's."""

    position: int


class Encoder:
    """Encodes for one thread: with gigatoken where `fast`, with `tokenizers` otherwise; the ids are the same."""

    def __init__(self, toki: Tokenizer, fast: bool, errors: str = "strict", ready: gigatoken.Tokenizer | None = None):
        """errors: "strict", or "replace" for U+FFFD in place of what is not UTF-8. ready: what `fast_tokenizer`
        made."""
        self._toki, self._fast, self._errors = toki, fast, errors
        self._dtype = id_dtype(toki.vocab_size)
        # Bytes of each token, in the narrowest type: these are looked up for every token of the text.
        lengths = [0]
        if fast:
            token_bytes = toki.token_bytes()
            assert token_bytes is not None  # `fast_tokenizer` asks for them
            lengths = [len(piece) for piece in token_bytes]
        self._lengths = np.array(lengths, dtype=np.min_scalar_type(max(lengths)))
        self._gigatoken, self._seen = ready, 0
        self._most_resident = (resident_bytes() or 0) + GROWTH

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of `text`, which is UTF-8, [tokens], in the dtype that `id_dtype` gives."""
        return self._fast_ids(text) if self._fast else self._by_library(text)

    def encode_chunk(self, data: bytes, starts: np.ndarray | None = None) -> Encoded | NotUtf8 | Differs:
        """Encode one chunk of text, part by part: what that needs is in proportion to the part.

        starts: positions in the chunk at which documents begin. A document begins with the token that holds its first
        byte, so two that begin in one token count as one.
        """
        parts, documents, forced, text_bytes, tokens = [], [np.empty(0, dtype=np.int64)], [], 0, 0
        for part in pieces(TextInMemory(data), FAST_PART_BYTES if self._fast else LIBRARY_PART_BYTES, self._toki):
            raw = data[part.start : part.stop]
            if (position := not_utf8_at(raw)) is None:
                encoded = raw
            elif self._errors == "strict":
                return NotUtf8(part.start + position)
            else:
                encoded = raw.decode("utf-8", "replace").encode("utf-8")
            here = [] if starts is None else starts[(starts >= part.start) & (starts < part.stop)].tolist()
            # Where they are in what is encoded, in which U+FFFD may stand for fewer bytes.
            here = [len(raw[: start - part.start].decode("utf-8", "replace").encode("utf-8")) for start in here]
            if self._fast:
                ids = self._fast_ids(encoded)
                if not self._may_be_right(encoded, ids):
                    return Differs(part.start + self._first_difference(encoded, ids))
            else:
                ids = self._by_library(encoded)
            if here:
                ends = np.cumsum(self._lengths[ids], dtype=np.int64) if self._fast else self._ends_by_library(encoded)
                documents.append(tokens + np.searchsorted(ends, here, side="right"))
            parts.append(ids)
            forced += [part.stop] if part.forced else []
            text_bytes, tokens = text_bytes + len(encoded), tokens + len(ids)
        ids = np.concatenate(parts)
        if starts is not None:
            first_tokens = np.unique(np.concatenate(documents)).astype(np.uint64)
            starts = first_tokens[first_tokens < tokens]  # a normalizer may leave no token of a chunk's last document
        return Encoded(ids, text_bytes, zlib.crc32(data), zlib.crc32(ids.data), forced, starts)

    def _fast_ids(self, text: bytes) -> np.ndarray:
        """By gigatoken, but for the stretches with characters that it sees differently."""
        if not seen_differently(text):
            return self._by_gigatoken(text)
        parts = (text[part.start : part.stop] for part in pieces(TextInMemory(text), LIBRARY_PART_BYTES, self._toki))
        return np.concatenate(
            [self._by_library(part) if seen_differently(part) else self._by_gigatoken(part) for part in parts]
        )

    def _by_gigatoken(self, text: bytes) -> np.ndarray:
        if self._gigatoken is None:
            self._gigatoken, self._seen = _gigatoken_of(self._toki), 0
        ids, _ = self._gigatoken.encode_batch_padded(gigatoken.BytesSource([text]), 0, parallel=False)
        self._seen += len(text)
        if self._seen > LEAST_BYTES and self._has_grown():
            self._gigatoken = None
        return ids[0].astype(self._dtype)

    def _has_grown(self) -> bool:
        """Whether the words that are remembered may be too many."""
        resident = resident_bytes()
        return self._seen > BLIND_BYTES if resident is None else resident > self._most_resident

    def _by_library(self, text: bytes) -> np.ndarray:
        # A batch of one: `encode` would keep the other threads waiting.
        return np.array(
            self._toki.backend.encode_batch_fast([text.decode("utf-8")], add_special_tokens=False)[0].ids,
            dtype=self._dtype,
        )

    def _ends_by_library(self, text: bytes) -> np.ndarray:
        """The byte of `text` at which each of its tokens ends, by the library, which knows what its normalizer did."""
        decoded = text.decode("utf-8")
        [encoding] = self._toki.backend.encode_batch([decoded], add_special_tokens=False)
        bytes_to = np.append(0, np.cumsum([len(character.encode("utf-8")) for character in decoded]))
        return np.maximum.accumulate(bytes_to[[end for _, end in encoding.offsets]])

    def _may_be_right(self, text: bytes, ids: np.ndarray) -> bool:
        """Whether gigatoken's ids stand for as many bytes as there are, and begin as the library's do."""
        if self._lengths[ids].sum(dtype=np.int64) != len(text):
            return False
        sample = text if len(text) <= SAMPLE_BYTES else text[: last_safe_cut(text[:SAMPLE_BYTES], self._toki)]
        wanted = self._by_library(sample)
        return np.array_equal(ids[: len(wanted)], wanted)

    def _first_difference(self, text: bytes, ids: np.ndarray) -> int:
        """The byte at which the first token begins that is not the library's."""
        wanted = np.concatenate(
            [
                self._by_library(text[part.start : part.stop])
                for part in pieces(TextInMemory(text), LIBRARY_PART_BYTES, self._toki)
            ]
        )
        both = min(len(ids), len(wanted))
        different = np.flatnonzero(ids[:both] != wanted[:both])
        first = different[0] if len(different) else both
        return int(self._lengths[wanted[:first]].sum(dtype=np.int64))


def ids_differ(text: Path, where: str) -> UserError:
    """The error for a text that gigatoken encodes to other ids than `tokenizers`, which defines them."""
    return UserError(
        f"{text}: gigatoken and tokenizers encode it to different ids {where}: let the library encode, which takes "
        'longer, with --encoder tokenizers (encoder="tokenizers"); chunks that are there were compared and stay'
    )


def not_utf8_at(data: bytes) -> int | None:
    """The position of the first byte that is not UTF-8; None where all are."""
    if data.isascii():
        return None
    view, start = memoryview(data), 0
    try:
        while start < len(data):
            stop = start + DECODED_BYTES
            start += codecs.utf_8_decode(view[start:stop], "strict", stop >= len(data))[1]
    except UnicodeDecodeError as error:
        return start + error.start
    return None


def seen_differently(text: bytes) -> bool:
    """Whether a text, which is UTF-8, has a character that the two libraries see differently."""
    if text.isascii():
        return False
    data = np.frombuffer(text, dtype=np.uint8)
    for first, (size, seconds, endings) in _THEIR_BYTES.items():
        if bytes([first]) in text:  # at the speed of memory, and in most texts none is
            at = np.flatnonzero(data == first)
            at = at[seconds[data[at + 1]]]
            if any(text[start + 1 : start + size] in endings for start in at.tolist()):
                return True
    return False


def _bytes_of(runs: tuple[tuple[int, int], ...]) -> dict[int, tuple[int, np.ndarray, set[bytes]]]:
    """For each byte that these characters begin with in UTF-8: how many bytes they have, which come second, bool [256],
    and what all but the first are."""
    found = {}
    for first, last in runs:
        for code in range(first, last + 1):
            byte, *_ = encoded = chr(code).encode("utf-8")
            _, seconds, endings = found.setdefault(byte, (len(encoded), np.zeros(256, dtype=bool), set()))
            seconds[encoded[1]] = True
            endings.add(encoded[1:])
    return found


_THEIR_BYTES = _bytes_of(SEEN_DIFFERENTLY)


def id_dtype(vocab_size: int) -> np.dtype:
    """uint16 where all ids fit, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def fast_tokenizer(toki: Tokenizer) -> gigatoken.Tokenizer | str:
    """A gigatoken tokenizer of the same ids, which has met no word yet; or what keeps it from giving them."""
    definition, model = toki.definition, toki.definition["model"]
    if definition.get("normalizer") is not None:
        return "it normalizes the text"
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            return f"its model has {option}"
    if not all(token.get("special") for token in definition.get("added_tokens") or ()):
        return "it has added tokens that are not special"
    if not any(step.get("type") == "ByteLevel" for step in steps_of(definition.get("pre_tokenizer"))):
        return "it is not byte-level"
    if toki.token_bytes() is None:
        return "the bytes of its tokens are not known"
    try:
        return _gigatoken_of(toki)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # its panics are no Exceptions
        return f"gigatoken does not know it ({first_line(error)[:100]})"


def _gigatoken_of(toki: Tokenizer) -> gigatoken.Tokenizer:
    parts = {name: toki.definition.get(name) for name in ("version", "model", "pre_tokenizer")}
    return gigatoken.Tokenizer.from_json(pydantic_core.to_json(parts | {"added_tokens": []}).decode("utf-8"))
