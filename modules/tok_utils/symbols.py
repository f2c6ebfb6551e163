r"""Symbols in place of learned tokens, for DNA, proteins, music, moves of a game: a text's vocabulary is its own.

- `characters`: every character (code point) is a token, line ends too.
- `bytes`: every byte of the UTF-8 text is one.
- `words`: what stands between white space. White space itself is none: a decoded text has single blanks.
- `kmers:6`: six letters at a time, from the start of each run of letters without white space; what is left at its end,
  fewer than six, is written letter by letter, as white space is.

Ids go to the text's symbols in order of their frequency, as far as the vocabulary reaches. A k-mer beyond it is written
letter by letter; other symbols beyond it, and those that the text did not have, become `<unk>`, all one. Each kind is a
tokenizer of the Hugging Face kind without merges, so that it opens in `transformers` and gives the same ids there.

`characters`, `bytes` and `words` have no direction: the reversed text's tokens are the reversed tokens
(`symmetric.py`). With `bytes` this is the text reversed by byte: the bytes of a character beyond ASCII stand in their
order otherwise. k-mers have one: where the letters are no multiple of k, those of the reversed text begin elsewhere.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from modules.system.console import tell
from modules.system.errors import UserError
from modules.system.schema import shown
from modules.tok_utils import bpe_training
from modules.tokenizer import BOS_TOKEN, Tokenizer

UNKNOWN = "<unk>"
SPECIAL = 2  # ids that are no symbols: BOS_TOKEN and UNKNOWN
LARGEST_K = 31
KMERS = re.compile(r"kmers:([0-9]{1,4})")
KMER_PATTERN = re.compile(r"\\S\{([0-9]+)\}")
WORD = regex.compile(r"\S+")  # white space is to `regex` what it is to `tokenizers`; Python's has four more
WHITE_SPACE = regex.compile(r"\s")


def checked_symbols(symbols: str) -> str:
    """`symbols` as it stands in files, "kmers:6" say. UserError where it is none of the four."""
    k = KMERS.fullmatch(symbols) if isinstance(symbols, str) else None
    if k and not 2 <= int(k[1]) <= LARGEST_K:
        raise UserError(f"symbols: expected kmers:2 to kmers:{LARGEST_K}, found {shown(symbols)}")
    if k is None and symbols not in ("characters", "bytes", "words"):
        raise UserError(f"symbols: expected characters, bytes, words or kmers:K (kmers:6, say), found {shown(symbols)}")
    return f"kmers:{int(k[1])}" if k else symbols


def untrained(symbols: str) -> Tokenizer:
    """A tokenizer of this kind that knows no symbols yet."""
    return _loaded(_backend(symbols, {}))


def train(pieces: Iterable[str], symbols: str, vocab_size: int) -> Backend:
    """The tokenizer of the symbols of a text, given as pieces that no symbol crosses. What it has, and what it leaves
    out, is said."""
    if symbols == "bytes":
        for _ in pieces:  # that the text can be read is seen here, as with the others
            pass
        return _backend(symbols, {})
    letters, counts, k = Counter(), Counter(), _k_of(symbols)
    for piece in pieces:
        if symbols == "words":
            counts.update(WORD.findall(piece))
        else:
            letters.update(piece)
            counts.update(_kmers(piece, k) if k > 1 else ())
    for name in (BOS_TOKEN, UNKNOWN):  # written in a text they are nothing special, and have no id of their own
        del counts[name]
    room = vocab_size - SPECIAL
    chosen = [symbol for symbol, _ in [*_by_frequency(letters), *_by_frequency(counts)]][:room]
    lost = Counter(dict((_by_frequency(letters) + _by_frequency(counts))[room:]))
    what = f"{symbols}: the text has {len(letters) + len(counts):,}"
    if k > 1:
        what += f", single letters ({len(letters):,}) included"
    becomes = "are written letter by letter" if k > 1 and len(letters) <= room else f"become {UNKNOWN}"
    total = (counts if counts else letters).total()
    if lost:
        share = f"{lost.total() / total:.2%} of its symbols"
        what += f"; {len(lost):,} of them, {share}, have no id among {vocab_size:,} and {becomes}"
    tell(what, sys.stderr)
    return _backend(symbols, {symbol: i for i, symbol in enumerate([UNKNOWN, *chosen])})


def symbols_of(toki: Tokenizer) -> str | None:
    """Which symbols a tokenizer is of, as `checked_symbols` gives it; None where it is another kind."""
    definition, model = toki.definition, toki.definition.get("model") or {}
    if definition.get("normalizer") or model.get("merges"):
        return None
    split, decoder = definition.get("pre_tokenizer") or {}, definition.get("decoder") or {}
    kinds = model.get("type"), split.get("type"), decoder.get("type")
    if kinds == ("WordLevel", "WhitespaceSplit", None):
        return "words"
    if kinds == ("BPE", "ByteLevel", "ByteLevel") and not split.get("add_prefix_space", True):
        return "bytes"
    if kinds == ("BPE", None, "Fuse"):
        return "characters"
    if kinds == ("BPE", "Split", "Fuse") and split.get("behavior") == "Isolated" and model.get("ignore_merges"):
        pattern = KMER_PATTERN.fullmatch((split.get("pattern") or {}).get("Regex", ""))
        return f"kmers:{pattern[1]}" if pattern else None
    return None


def why_directed(symbols: str) -> str | None:
    """What gives such a tokenizer a direction; None where nothing does."""
    return "its k-mers are counted from the left" if _k_of(symbols) > 1 else None


def last_cut(data: bytes, symbols: str) -> int:
    """The last position in `data`, a text's bytes from a cut or its start, at which it may be cut; 0 where there is
    none.

    Symbols of one character may be cut anywhere, k-mers between two.
    """
    end = len(data)
    while end and end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    end = end - 1 if end and data[end - 1] >= 0xC0 else len(data)  # the last character may be torn: left out
    if (k := _k_of(symbols)) == 1:
        return end
    text = data[:end].decode("utf-8", "surrogateescape")
    run = next((match.end() for match in WHITE_SPACE.finditer(text[::-1])), None)
    start = 0 if run is None else len(text) - run + 1  # of the last run of letters
    return len(text[: start + (len(text) - start) // k * k].encode("utf-8", "surrogateescape"))


def _k_of(symbols: str) -> int:
    return int(symbols.partition(":")[2] or 1)


def _kmers(text: str, k: int) -> Iterator[str]:
    return (match[0] for match in regex.finditer(rf"\S{{{k}}}", text))


def _by_frequency(counts: Counter) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _backend(symbols: str, vocab: dict[str, int]) -> Backend:
    """The library's tokenizer. BOS comes behind the symbols and is none of the model's, which would find it written in
    a text."""
    if symbols == "bytes":
        backend = bpe_training.bytes_only()
    elif symbols == "words":
        backend = Backend(models.WordLevel(vocab or {UNKNOWN: 0}, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        k = _k_of(symbols)
        backend = Backend(models.BPE(vocab or {UNKNOWN: 0}, [], unk_token=UNKNOWN, ignore_merges=k > 1))
        backend.decoder = decoders.Fuse()
        if k > 1:
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\S{{{k}}}"), "isolated")
    names = [BOS_TOKEN] if symbols == "bytes" else [UNKNOWN, BOS_TOKEN]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return backend


def _loaded(backend: Backend) -> Tokenizer:
    return Tokenizer(Path(), json.loads(backend.to_str()), backend)
