r"""A tokenizer without a direction: the tokens of a reversed text are the reversed tokens of the text.

GPT-2's kind has a direction: a blank belongs to the word behind it, contractions hang on the word before them, and of
three equal tokens the leftmost two merge. Here, reversing by character (code point, as `reverse.py` does):

- A blank between two non-spaces is shared: it is written twice, once for either side, so "a b" is `a ` and ` b`. n
  blanks between non-spaces become n + 1 and the decoder takes one off again, so nothing is lost, whatever the text
  holds.
- A piece is a maximal run of letters and marks, of digits, or of other characters, together with the blank on either
  side of it if there is one; or what white space is left. Between two non-spaces there are now no blanks or at least
  two, so none is claimed twice, and the pieces of the reversed text are the reversed pieces.
- A piece that is in the vocabulary is one token (`ignore_merges`). In others the bytes of each character join, and then
  come the merges in their order. No merge joins two equal tokens, each token has one merge, and it stands behind the
  merges that make its parts. So when a merge has its turn all its places are there, none overlap, and all are joined
  before another merge has its turn: left and right play no part. Hence the tokenizer with every token and merge
  mirrored, ids kept, has the mirrored tokens: `mirror_of`.

So the control experiment is exact: the ids of the reversed text under `mirror_of(toki)` are the ids of the text from
its end to its start. The exception are characters too rare to get an id. They are written as their bytes, which stand
in the same order in both texts; `torn_ids` tells these ids, so that they can be counted.

The `tokenizers` library cannot be told which merges to leave out, so `learn` is ours. It takes some 0.1 ms and 1.5 kB
for each distinct piece of the text.
"""

import heapq
import itertools
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import regex
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from modules.system.console import tell
from modules.system.errors import UserError
from modules.tok_utils.symbols import symbols_of, why_directed
from modules.tokenizer import BOS_TOKEN, BYTE_OF_CHARACTER, Tokenizer, merge_pairs

SHARED_BLANK = r"(?<=\S) (?= *\S)"  # the first of the blanks between two non-spaces, which is written twice
DOUBLED_BLANK = r"(?<=\S) (?= +\S)"  # the first of two or more, which the decoder takes off
PIECE = r" ?[\p{L}\p{M}]+ ?| ?\p{N}+ ?| ?[^\s\p{L}\p{M}\p{N}]+ ?|\s+(?= \S)|\s+"
CHARACTERS = 0.25  # of the ids to be learned go to characters before anything else
LONGEST = 100  # characters; longer pieces are learned from in parts, for every merge in a piece rewrites all of it
BYTES = sorted(BYTE_OF_CHARACTER)  # in the order of their ids
CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}

NORMALIZER = normalizers.Replace(Regex(SHARED_BLANK), "  ")
PRE_TOKENIZER = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(PIECE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
DECODER = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(DOUBLED_BLANK), "")])
_SPLIT = NORMALIZER.__getstate__(), PRE_TOKENIZER.__getstate__()  # as JSON
_shared_blank, _piece = regex.compile(SHARED_BLANK), regex.compile(PIECE)


def untrained() -> tokenizers.Tokenizer:
    """A tokenizer with the symmetric split and the bytes alone."""
    return _backend({character: i for i, character in enumerate(BYTES)}, [])


def train(texts: Iterable[list[str]], vocab_size: int) -> tokenizers.Tokenizer:
    """The tokenizer of `texts`, given as lists of items that no piece crosses: BOS, the 256 bytes, then what `learn`
    learns."""
    counts, parts = Counter(), Counter()
    for items in texts:
        for item in items:
            counts.update(pieces_of(item))
    for piece in [piece for piece in counts if len(piece) > LONGEST]:
        count = counts.pop(piece)
        for start in range(0, len(piece), LONGEST):
            parts[piece[start : start + LONGEST]] += count
    tokens, merges, apart = learn(counts, vocab_size - len(BYTES) - 1, parts)
    if apart:
        some = ", ".join(map(repr, [*apart][:5])) + (", ..." if len(apart) > 5 else "")
        tell(
            f"{len(apart)} rare characters ({some}) got no id: at their {sum(apart.values())} places "
            "the tokens do not turn round with the text",
            sys.stderr,
        )
    backend = _backend(
        {token: i for i, token in enumerate([BOS_TOKEN, *BYTES, *map(_spelled, tokens)])},
        [(_spelled(left), _spelled(right)) for left, right in merges],
    )
    backend.add_special_tokens([AddedToken(BOS_TOKEN, normalized=False, special=True)])
    return backend


def pieces_of(text: str) -> list[str]:
    """The pieces in which `text` is encoded, with the blanks that they share."""
    return _piece.findall(_shared_blank.sub("  ", text))


def _backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = NORMALIZER, PRE_TOKENIZER, DECODER
    return backend


def shares_blanks(toki: Tokenizer) -> bool:
    """Whether `toki` splits a text as this module says."""
    parts = toki.backend.normalizer, toki.backend.pre_tokenizer
    return None not in parts and tuple(part.__getstate__() for part in parts) == _SPLIT


def why_not_symmetric(toki: Tokenizer) -> str | None:
    """What about a tokenizer gives it a direction; None where nothing does: what the head of this file says of split
    and merges holds, or it is one of symbols (`symbols.py`) that have none."""
    if (symbols := symbols_of(toki)) is not None:
        return why_directed(symbols)
    if not shares_blanks(toki):
        return "it does not split the text alike from both ends"
    if toki.definition["model"].get("dropout"):
        return "its merges are drawn by chance"
    made = set(BYTES)
    for left, right in merge_pairs(toki.definition):
        token = left + right
        if left == right:
            return f"it merges two equal tokens, {left!r}"
        if token in made or not {left, right} <= made:
            return f"its merges do not make {token!r} once, after its parts"
        if None in (_text(left), _text(right)) and not _starts_a_character(token):
            return f"its token {token!r} holds a part of a character beside others"
        made.add(token)
    return None


def mirror_of(toki: Tokenizer) -> Tokenizer:
    """The mirror image of a tokenizer: tokens and merges mirrored, ids kept. Its ids of a reversed text are those of
    the text, reversed.

    Raises UserError where `toki` has a direction.
    """
    if reason := why_not_symmetric(toki):
        raise UserError(
            f"{toki.folder}: expected a tokenizer without a direction; {reason}. "
            'Make one with create_tokenizer(..., split="symmetric")'
        )
    special = {token["content"] for token in toki.definition.get("added_tokens") or ()}
    model, of_symbols = toki.definition["model"], symbols_of(toki) is not None
    vocab = {
        token if token in special else token[::-1] if of_symbols else _mirrored(token): i
        for token, i in model["vocab"].items()
    }
    # The bytes of a character stay in their order.
    merges = [
        [left, right] if None in (_text(left), _text(right)) else [_mirrored(right), _mirrored(left)]
        for left, right in merge_pairs(toki.definition)
    ]
    model = model | {"vocab": vocab} | ({"merges": merges} if "merges" in model else {})
    definition = toki.definition | {"model": model}
    return Tokenizer(toki.folder, definition, tokenizers.Tokenizer.from_str(json.dumps(definition)))


def torn_ids(toki: Tokenizer) -> np.ndarray:
    """Which ids stand for a part of a character, bool [vocab_size]: without them a text reverses exactly."""
    torn = np.zeros(toki.vocab_size, dtype=bool)
    if symbols_of(toki) in ("characters", "words"):
        return torn
    for token, i in toki.backend.get_vocab(with_added_tokens=False).items():
        torn[i] = _text(token) is None
    return torn


def _spelled(token: str | bytes) -> str:
    """Text or bytes as byte-level tokens are written in a tokenizer.json."""
    return "".join(CHARACTER_OF_BYTE[byte] for byte in (token.encode("utf-8") if isinstance(token, str) else token))


def _text(token: str) -> str | None:
    """The characters of a token as written in a tokenizer.json; None where it holds a part of one."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _starts_a_character(token: str) -> bool:
    """Whether a token as written in a tokenizer.json is one character beyond ASCII, or the first bytes of one."""
    first, *others = (BYTE_OF_CHARACTER[character] for character in token)
    return first >= 0xC2 and all(byte & 0xC0 == 0x80 for byte in others)


def _mirrored(token: str) -> str:
    text = _text(token)
    return token if text is None else _spelled(text[::-1])


def learn(
    counts: Mapping[str, int], room: int, parts: Mapping[str, int] = MappingProxyType({})
) -> tuple[list[str | bytes], list[tuple[str | bytes, str | bytes]], Counter[str]]:
    """The tokens and merges that spare most tokens in the pieces of `counts`.

    The characters beyond ASCII come first, the more frequent the earlier, while they take no more than a share of the
    ids. Then each id in turn goes to what spares most tokens at that moment: the merge of a pair, a whole piece, or
    another character whose bytes are to join. The choice between equals is the same for a text and its mirror, unless
    they are mirrors of each other.

    Args:
        counts: pieces of the text, and how often each occurs.
        room: number of tokens to reach; few pieces may give fewer.
        parts: stretches of text that are no pieces, and how often each occurs: merges are learned from them as well.

    Returns the new tokens in the order of their ids, the merges in the order of their ranks, those of bytes first, and
    the characters that got no id and how often they occur outside pieces that did. Tokens are bytes where they are
    parts of a character, strings otherwise.
    """
    learner = _Learner(counts, parts)
    for character in sorted(learner.apart, key=lambda character: (-learner.apart[character], character)):
        learner.join(character, int(room * CHARACTERS) - len(learner.tokens))
    while learner.heap and len(learner.tokens) < room:
        learner.step(room - len(learner.tokens))
    return list(learner.tokens), learner.byte_merges + learner.merges, +learner.apart


class _Learner:
    """The state of `learn`. A candidate is a tuple of strings: (left, right) a merge, (piece,) a whole piece,
    (character, "") a character."""

    def __init__(self, counts: Mapping[str, int], parts: Mapping[str, int]):
        texts = [*counts, *parts]
        self.counts = [*counts.values(), *parts.values()]
        self.number = {piece: i for i, piece in enumerate(counts)}
        self.pieces = [list(text) for text in texts]  # as tokens so far
        self.whole = [False] * len(texts)
        self.tokens: dict[str | bytes, None] = {}  # in the order of their ids
        self.merged: set[str] = set()
        self.merges, self.byte_merges = [], []
        self.pairs, self.where = Counter(), defaultdict(set)  # how often, and in which pieces
        self.apart = Counter()  # characters whose bytes have not joined, and how often they occur
        self.holders = defaultdict(list)
        for i, text in enumerate(texts):
            if not text.isascii():
                for character, times in Counter(text).items():
                    if not character.isascii():
                        self.apart[character] += times * self.counts[i]
                        self.holders[character].append(i)
        for i in range(len(self.pieces)):
            self._count(i, self.pieces[i], 1)
        self.heap: list[tuple] = []
        self._offer((*self.pairs, *((character, "") for character in self.apart), *((piece,) for piece in counts)))

    def step(self, room: int) -> None:
        """Take the best candidate: learn it, or put it back where it has become worse since it was put there."""
        gain, _, candidate = heapq.heappop(self.heap)
        now = self._gain(candidate)
        if now < -gain:
            self._offer([candidate])
        elif len(candidate) == 1:
            self._add(candidate[0])
        elif candidate[1]:
            self._merge(*candidate)
        else:
            self.join(candidate[0], room)

    def _gain(self, candidate: tuple[str, ...]) -> int:
        """Tokens that it would spare for each id."""
        if len(candidate) == 1:
            i = self.number[candidate[0]]
            tokens = (
                1
                if self.whole[i]
                else sum(len(token.encode("utf-8")) if token in self.apart else 1 for token in self.pieces[i])
            )
            return (tokens - 1) * self.counts[i]
        left, right = candidate
        if not right:
            return self.apart[left]
        return 0 if left + right in self.merged else self.pairs[candidate]

    def _entry(self, candidate: tuple[str, ...]) -> tuple:
        mirrored = tuple(part[::-1] for part in reversed(candidate)) if candidate[-1] else candidate
        return -self._gain(candidate), min(candidate, mirrored), candidate

    def _offer(self, candidates: Iterable[tuple[str, ...]]) -> None:
        for candidate in candidates:
            entry = self._entry(candidate)
            if entry[0]:
                heapq.heappush(self.heap, entry)

    def _add(self, token: str) -> None:
        """Give it an id. Where it is a piece, the piece is now one token."""
        self.tokens[token] = None
        if token in self.number:
            i = self.number[token]
            for character in self.pieces[i]:
                if character in self.apart:
                    self.apart[character] -= self.counts[i]
            self._rewrite(i, [token])
            self.whole[i] = True

    def _merge(self, left: str, right: str) -> None:
        token = left + right
        self.merges.append((left, right))
        self.merged.add(token)
        self._add(token)
        changed = set()
        for i in list(self.where[left, right]):
            changed |= self._rewrite(i, _joined(self.pieces[i], left, right))
        del self.where[left, right], self.pairs[left, right]
        self._offer(pair for pair in changed if token in pair)

    def join(self, character: str, room: int) -> None:
        """Join the bytes of a character, if there is room for the ids that this takes."""
        data = character.encode("utf-8")
        starts = [data[:end] for end in range(2, len(data)) if data[:end] not in self.tokens]
        if len(starts) + (character not in self.tokens) > room:
            return
        self.byte_merges += [(made[:-1], made[-1:]) for made in (*starts, data)]
        self.tokens |= dict.fromkeys((*starts, character))
        holders = self.holders[character]
        for i in holders:
            self._count(i, self.pieces[i], -1)
        del self.apart[character]
        changed = set()
        for i in holders:
            changed |= self._count(i, self.pieces[i], 1)
        self._offer(pair for pair in changed if character in pair)
        if character in self.number:
            self._add(character)

    def _rewrite(self, i: int, tokens: list[str]) -> set[tuple[str, str]]:
        """Write piece number `i` with these tokens. Returns its pairs."""
        self._count(i, self.pieces[i], -1)
        self.pieces[i] = tokens
        return self._count(i, tokens, 1)

    def _count(self, i: int, tokens: list[str], sign: int) -> set[tuple[str, str]]:
        """Add a piece's pairs to the counts, or take them off."""
        pairs = set()
        for pair in _pairs(tokens, self.apart):
            self.pairs[pair] += sign * self.counts[i]
            pairs.add(pair)
        for pair in pairs:
            (self.where[pair].add if sign > 0 else self.where[pair].discard)(i)
        return pairs


def _pairs(tokens: list[str], apart: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The neighbours that a merge may join."""
    for pair in itertools.pairwise(tokens):
        if pair[0] != pair[1] and pair[0] not in apart and pair[1] not in apart:
            yield pair


def _joined(tokens: list[str], left: str, right: str) -> list[str]:
    """`tokens` with each `left` before a `right` joined to it."""
    joined = []
    for token in tokens:
        if token == right and joined and joined[-1] == left:
            joined[-1] = left + right
        else:
            joined.append(token)
    return joined
