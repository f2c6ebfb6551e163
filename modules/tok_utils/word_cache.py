r"""Ids of words that came before, looked up all at once: half as fast again as tiktoken, which encodes each word
afresh.

A *word* is what GPT-2's pattern splits a text into: a run of letters, of digits or of signs with the blank before it, a
contraction, or white space. Most words of a text have come before, so what matters is the cost of finding words and
looking them up; here both are numpy operations on a whole text at a time, and only new words go through tiktoken,
joined to one text.

- The split is the pattern written out for arrays (`word_starts`); the classes of characters are asked of the library itself.
- A word of up to 15 UTF-8 bytes *is* its key, two 8-byte numbers: no hash stands for it, so no two words can be taken for one another.
- The table is direct-mapped: a key has one row, and a new word takes the place of the one that is there. So memory is fixed, and all
  that two words of one row cost each other is time.

MB/s a core on docstrings, with the cache and with tiktoken alone: 57 and 39; with 2 % of the letters replaced at random
37 and 25.
"""

import functools
from collections.abc import Callable

import numpy as np
from tokenizers import Regex, pre_tokenizers

LETTER, DIGIT, SPACE, SIGN = range(4)
CLASSIFIED = 0x40000  # code points from here on are tags, private or unassigned: signs, all of them
BLANK, APOSTROPHE, NEWLINE = b" '\n"

LONGEST_KEY = 15  # bytes of a word; the 16th byte of a key is the length
MOST_IDS = 4  # of a word in the table
ROW_BITS = 19  # 524,288 rows, 16 MB at 16 bits an id
THREE, EIGHT, LENGTH_PLACE, ALL_BITS = np.array([3, 8, 56, -1]).astype(np.uint64)
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9], dtype=np.uint64
)  # odd, their bits without a pattern


class WordCache:
    """An encoder with a memory. `encode` must encode GPT-2's words independently of each other, and a newline that
    stands alone to one id.

    encode_space: the same for one word of white space, which cannot be joined with others and split again. dtype: that
    of the ids.
    """

    def __init__(self, encode: Callable[[str], np.ndarray], encode_space: Callable[[str], np.ndarray], dtype: np.dtype):
        self._encode, self._encode_space = encode, encode_space
        self._newline_id = encode("\n")[0]
        # Columns: a key's two numbers, how many ids, and these, several to a number. (A structured array is gathered at
        # half the speed.)
        self._table = np.zeros((1 << ROW_BITS, 3 + MOST_IDS * dtype.itemsize // 8), dtype=np.uint64)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, [tokens]."""
        if not text:
            return self._encode(text)
        data = text.encode("utf-8")
        starts, is_space = words_of(data)
        lengths = np.diff(starts, append=len(data))
        low, high = keys_of(data, starts, lengths)
        rows = rows_of(low, high)
        found = self._table[rows]
        known = (found[:, 0] == low) & (found[:, 1] == high)
        counts = found[:, 2].astype(np.int64)

        new = np.flatnonzero(~known)
        new_ids, counts[new] = self._encode_new(data, starts[new], lengths[new], is_space[new])
        first = np.cumsum(counts) - counts
        ids = np.empty(first[-1] + counts[-1], dtype=new_ids.dtype)
        ids[ranges(first[new], counts[new])] = new_ids
        known_ids = found[:, 3:].view(ids.dtype)
        for place in range(MOST_IDS):
            here = np.flatnonzero(known & (counts > place))
            ids[first[here] + place] = known_ids[here, place]

        self._table[rows[new]] = self._entries(low[new], high[new], counts[new], new_ids)
        return ids

    def _encode_new(
        self, data: bytes, starts: np.ndarray, lengths: np.ndarray, is_space: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of these words one after the other, and how many each has.

        With a newline behind each, the words are one text, which splits into the same words; the newlines' ids then
        tell where each ends. White space is encoded word by word, once for each kind.
        """
        counts = np.zeros(len(starts), dtype=np.int64)
        sizes = lengths[~is_space] + 1
        joined = np.frombuffer(data + b"\n", dtype=np.uint8)[ranges(starts[~is_space], sizes)]
        joined[np.cumsum(sizes) - 1] = NEWLINE
        visible_ids = self._encode(joined.tobytes().decode("utf-8"))
        ends = np.flatnonzero(visible_ids == self._newline_id)
        counts[~is_space] = np.diff(ends, prepend=-1) - 1

        spaces = [
            data[start : start + length]
            for start, length in zip(starts[is_space].tolist(), lengths[is_space].tolist(), strict=True)
        ]
        ids_of = {space: self._encode_space(space.decode("utf-8")) for space in set(spaces)}
        counts[is_space] = [len(ids_of[space]) for space in spaces]

        ids = np.empty(counts.sum(), dtype=visible_ids.dtype)
        from_space = np.repeat(is_space, counts)
        ids[~from_space] = np.delete(visible_ids, ends)
        if spaces:
            ids[from_space] = np.concatenate([ids_of[space] for space in spaces])
        return ids, counts

    def _entries(self, low: np.ndarray, high: np.ndarray, counts: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Rows of the table for these words; an empty one, which no key finds, for a word that is too long or has too
        many ids."""
        entries = np.zeros((len(low), self._table.shape[1]), dtype=np.uint64)
        entries[:, 0], entries[:, 1], entries[:, 2] = low, high, counts
        first, entry_ids = np.cumsum(counts) - counts, entries[:, 3:].view(ids.dtype)
        for place in range(MOST_IDS):
            here = np.flatnonzero(counts > place)
            entry_ids[here, place] = ids[first[here] + place]
        entries[(counts > MOST_IDS) | (high >> LENGTH_PLACE > LONGEST_KEY)] = 0
        return entries


def words_of(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a text start in its UTF-8 bytes, and which are white space. [words], [words]"""
    codes = np.frombuffer(data, dtype=np.uint8)
    classes = np.frombuffer(bytearray(data.translate(class_of_code()[:256].tobytes())), dtype=np.uint8)
    if not data.isascii():
        classify_beyond_ascii(codes, classes)
    starts = np.flatnonzero(word_starts(codes, classes))
    return starts, classes[
        np.append(starts[1:], len(codes)) - 1
    ] == SPACE  # by its end: its beginning may be the space before a word


def classify_beyond_ascii(codes: np.ndarray, classes: np.ndarray) -> None:
    """Give all bytes of each character of two bytes or more its class, in `classes`."""
    leads = np.flatnonzero(codes >= 0xC0)
    sizes = 2 + (codes[leads] >= 0xE0) + (codes[leads] >= 0xF0).astype(np.int64)
    for size, lead_bits in ((2, 0x1F), (3, 0x0F), (4, 0x07)):
        at = leads[sizes == size]
        code = codes[at].astype(np.int64) & lead_bits
        for place in range(1, size):
            code = code << 6 | codes[at + place] & 0x3F
        found = class_of_code()[np.minimum(code, CLASSIFIED - 1)]
        for place in range(size):
            classes[at + place] = found


def word_starts(codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    r"""Whether a word starts at each byte of a text: GPT-2's pattern on arrays. `classes` are those of the bytes'
    characters.

    's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+
    """
    n = len(codes)
    start = np.ones(n, dtype=bool)
    np.not_equal(classes[1:], classes[:-1], out=start[1:])
    # Before something visible, white space leaves its last character out (\s+(?!\S)); a blank becomes the beginning of
    # what follows.
    space_ends = start[1:] & (classes[:-1] == SPACE)
    start[:-1] |= space_ends
    start[1:] &= ~(space_ends & (codes[:-1] == BLANK))
    inside = np.flatnonzero(
        start & (codes & 0xC0 == 0x80)
    )  # that last character has several bytes, and starts with the first
    while len(inside):
        start[inside] = False
        start[inside - 1] = True
        inside = (inside - 1)[codes[inside - 1] & 0xC0 == 0x80]
    # An apostrophe that starts a word takes the letters of a contraction with it.
    apostrophes = np.flatnonzero(start & (codes == APOSTROPHE))
    for letters in ("s", "t", "re", "ve", "m", "ll", "d"):
        at = apostrophes[apostrophes + len(letters) < n]
        for place, letter in enumerate(letters, start=1):
            at = at[codes[at + place] == ord(letter)]
        start[at + 1] = False
        after = at + len(letters) + 1
        start[after[after < n]] = True
    return start


@functools.cache
def class_of_code() -> np.ndarray:
    """The class of each code point below CLASSIFIED, as the `tokenizers` library sees it: Unicode grows, and libraries
    follow at their pace."""
    codes = [code for code in range(CLASSIFIED) if not 0xD800 <= code < 0xE000]
    characters = "".join(map(chr, codes))
    codes = np.array(codes)
    classes = np.full(CLASSIFIED, SIGN, dtype=np.uint8)
    for pattern, name in ((r"\P{L}+", LETTER), (r"\P{N}+", DIGIT), (r"\S+", SPACE)):
        for _, (start, stop) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(characters):
            classes[codes[start:stop]] = name
    return classes


def keys_of(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each word as two numbers: its first 8 bytes, and its next 7 with its length in the byte above.

    Of a word beyond LONGEST_KEY that byte is above LONGEST_KEY too, and the numbers do not tell it from others.
    """
    eight_bytes = np.ndarray(len(data) + 9, dtype="<u8", buffer=data + bytes(16), strides=(1,))  # from each position on
    lengths = np.minimum(lengths, LONGEST_KEY + 1).astype(np.uint64)
    low = eight_bytes[starts] & ALL_BITS >> (EIGHT - np.minimum(lengths, EIGHT) << THREE)
    high = eight_bytes[starts + 8] & ~(ALL_BITS << (np.maximum(lengths, EIGHT) - EIGHT << THREE))
    return low, high | lengths << LENGTH_PLACE


def rows_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The row of the table in which each key belongs."""
    mixed = (low * MULTIPLIERS[0]) ^ (high * MULTIPLIERS[1])
    mixed ^= mixed >> np.uint64(29)
    return (mixed * MULTIPLIERS[2] >> np.uint64(64 - ROW_BITS)).astype(np.int64)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... start + length - 1 of each, one after the other."""
    return np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
