r"""Where a text may be cut so that encoding the parts gives the ids of encoding the whole.

Byte-level BPE first splits a text with GPT-2's pattern and merges only within the pieces:

    's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+

A cut is safe where (1) in the whole text a piece ends, (2) the pieces before end the same way when the text stops at
the cut, and (3) those after start the same way when it starts there. (3) always follows from (1): the
pattern has no look-behind and matching resumes at the end of each piece.

- Between a non-space and a white-space character (BEFORE_SPACE). Only `\s+` matches white space after the first
  character, and it matches nothing else, so no piece holds both: (1). Only `\s+(?!\S)` looks ahead, from the end of
  white space; before the cut stands something else: (2).
- Between two of letter, digit, other (CLASS_CHANGE), an apostrophe before a letter excepted: each alternative without
  white space matches one class after its optional leading space, save the contractions, which are an apostrophe and
  then letters: (1). A greedy run ends at the same place whether another class or nothing follows, and whether a
  contraction matches depends on letters, none of which stand after a cut next to a letter: (2).

Symbols that are no words (`symbols.py`) need none of this: a text is cut between any two.

A tokenizer that shares a blank between the words on either side (`symmetric.py`) is cut before other white space only
(BEFORE_BREAK), and between classes. Its pieces end there too, and as no blank stands at such a cut, none that is shared
loses a side.

The first kind is found in nearly every text, so the second is tried only where a megabyte has no white space. It rests
on Unicode classes, in which `regex` and the tokenizer's own library may differ by a few newly assigned characters, and
loaded tokenizers may split by quite another pattern. So every cut is also tried out before it is used: CONTEXT
characters on each side must encode to the same ids in one and in two. For GPT-2's pattern that is a safety net under a
proof, for others (which have no proof here) it is the evidence.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import regex

from modules.system.errors import UserError
from modules.tok_utils.symbols import last_cut, symbols_of
from modules.tok_utils.symmetric import shares_blanks
from modules.tok_utils.text_source import TextInMemory, TextSource
from modules.tokenizer import Tokenizer

LONGEST_RUN = 1 << 20  # bytes; a text without a safe cut for longer than this is cut all the same
STEP = 1 << 18  # bytes by which a piece grows while it has no safe cut
NEAR = 1 << 12  # bytes; nearly always enough to find a cut
CONTEXT = 256  # characters on each side with which a cut is tried
TRIALS = 64  # cuts tried of each kind before giving up

# (?r): searched from the end, so the first match is the last safe cut.
BEFORE_SPACE = regex.compile(r"(?r)(?<=\S)(?=\s)")
BEFORE_BREAK = regex.compile(r"(?r)(?<=\S)(?=[^\S ])")
# Unassigned characters and the surrogates that stand for invalid bytes belong to no class.
_OTHER = r"[^\s\p{L}\p{N}\p{Cn}\p{Cs}]"
CLASS_CHANGE = regex.compile(
    rf"(?r)(?<=\p{{L}})(?=\p{{N}}|{_OTHER})|(?<=\p{{N}})(?=\p{{L}}|{_OTHER})|"
    rf"(?<={_OTHER})(?=\p{{N}})|(?<={_OTHER})(?<!')(?=\p{{L}})"
)


class Piece(NamedTuple):
    """Bytes [start, stop) of a text, which encode alone as they do in the whole; `forced` where the cut at `stop` was
    not a safe one."""

    start: int
    stop: int
    forced: bool


def pieces(source: TextSource | TextInMemory, piece_bytes: int, toki: Tokenizer) -> Iterator[Piece]:
    """Cut a text into pieces of at most about `piece_bytes` that encode alone as they do in the whole.

    The pieces are a function of the text, `piece_bytes` and the tokenizer alone. Only where the text has no safe cut
    for longer than LONGEST_RUN it is cut at a character. What lies before the piece last given is released from
    `source`.
    """
    start = 0
    while source.read(start, start + 1):
        stop, forced = _next_cut(source, start, piece_bytes, toki)
        yield Piece(start, stop, forced)
        source.release(stop)
        start = stop


def encoded(
    source: TextSource | TextInMemory, piece_bytes: int, toki: Tokenizer, where: object
) -> Iterator[tuple[list[int], int]]:
    """Yields the ids of each piece of a text, by the library itself, and where the piece ends. UserError, which names
    the text as `where`, for what is not UTF-8."""
    for piece in pieces(source, piece_bytes, toki):
        try:
            yield toki.encode(source.read(piece.start, piece.stop).decode("utf-8")), piece.stop
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: expected UTF-8 text, found {error.reason} at byte {piece.start + error.start:,}"
            ) from None


def _next_cut(source: TextSource | TextInMemory, start: int, piece_bytes: int, toki: Tokenizer) -> tuple[int, bool]:
    """The end of the piece that starts at `start`, and whether it is forced: the last safe cut within reach, or the end
    of the text."""
    end = start + piece_bytes
    symbols = symbols_of(toki)
    while source.read(end, end + 1):
        if symbols not in (None, "words"):
            if cut := last_cut(source.read(start, end), symbols):
                return start + cut, False
            end += min(piece_bytes, STEP)
            continue
        for reach in (NEAR, LONGEST_RUN + NEAR):
            first = max(start, end - reach)
            window = source.read(first, end + 1)
            cut = last_safe_cut(window, toki)
            if cut:
                return first + cut, False
        if end - start > LONGEST_RUN:
            return first + _character_start(window, end - first), True
        end += min(piece_bytes, STEP)
    assert source.size is not None  # its end has been read
    return source.size, False


def last_safe_cut(window: bytes, toki: Tokenizer) -> int:
    """The last position in `window` (bytes of a text, ends arbitrary) at which it may be cut; 0 where there is none."""
    torn = 0  # continuation bytes of a character that began before the window
    while torn < min(3, len(window)) and window[torn] & 0xC0 == 0x80:
        torn += 1
    text = window[torn:].decode("utf-8", "surrogateescape")
    for kind in (BEFORE_BREAK if shares_blanks(toki) else BEFORE_SPACE, CLASS_CHANGE):
        for match in itertools.islice(kind.finditer(text), TRIALS):
            if _encodes_alike(text, match.start(), toki):
                return torn + len(text[: match.start()].encode("utf-8", "surrogateescape"))
    return 0


def _encodes_alike(text: str, cut: int, toki: Tokenizer) -> bool:
    """Whether the surroundings of a cut encode to the same ids in one and in two."""
    left, right = (_valid(part) for part in (text[max(0, cut - CONTEXT) : cut], text[cut : cut + CONTEXT]))
    return toki.encode(left) + toki.encode(right) == toki.encode(left + right)


def _valid(text: str) -> str:
    """`text` with U+FFFD for the surrogates that stand for invalid bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _character_start(window: bytes, position: int) -> int:
    """The last position up to `position` at which a character starts; `position` itself where that is more than 3 bytes
    back."""
    for back in range(4):
        if window[position - back] & 0xC0 != 0x80:
            return position - back
    return position
