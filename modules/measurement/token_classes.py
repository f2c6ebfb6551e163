"""Classes of tokens, to see in which of them the arrow lives.

A token's class depends on its own bytes and on the token before it in the text, in either
direction of reading: both models' losses are sorted by the same classes. Where the arrow is told by class, a word
counts with all its tokens (`words_of`), in the class of its first.
"""

from collections.abc import Sequence

import numpy as np

from modules.measurement.arrow import ClassRow
from modules.tokenizer import Tokenizer

# Of classes of whole words. The inner pieces that are left belong to a word whose beginning the text does not have.
NAMES = ["word", "rest of a cut word", "number", "punctuation", "white space", "first word of a line"]
WHAT_CLASSES_ARE = (
    "A word counts with all its tokens: its first is the hard one forward and its last the hard one backward, so that "
    "the arrow of single tokens would be that of the chain rule inside words. Words after a newline and numbers are "
    "classes of their own."
)
WORD_START, INNER_PIECE, DIGITS, PUNCTUATION, WHITE_SPACE, AFTER_NEWLINE = range(len(NAMES))


def classify(ids: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """The class of each token of the stream `ids` [n], as indices into NAMES; `pieces[id]` are the bytes of a token.

    The first rule that holds decides: white space only; after white space that holds a newline; digits only; no letter
    and no digit; a space before it, or a token before it that does not end in a letter or digit (or none); otherwise it
    continues a word.
    """
    used, inverse = np.unique(ids, return_inverse=True)  # a text uses few ids of a large vocabulary
    texts = [pieces[i].decode("utf-8", errors="replace") for i in used]

    def each(holds) -> np.ndarray:
        return np.array([holds(text) for text in texts], dtype=bool)[inverse]

    def before(flags: np.ndarray, at_start: bool) -> np.ndarray:
        return np.concatenate([[at_start], flags[:-1]]) if len(flags) else flags

    is_white = each(lambda text: not text.strip())
    ends_line = is_white & each(lambda text: "\n" in text)
    return np.select(
        [
            is_white,
            before(ends_line, False),
            each(lambda text: text.strip().isdigit()),
            each(is_punctuation),
            each(lambda text: text[:1].isspace()) | before(each(lambda text: not is_word_character(text[-1:])), True),
        ],
        [WHITE_SPACE, AFTER_NEWLINE, DIGITS, PUNCTUATION, WORD_START],
        INNER_PIECE,
    )


def is_punctuation(text: str) -> bool:
    return not any(is_word_character(character) for character in text)


def is_word_character(character: str) -> bool:
    """Letters, digits, and the bytes of a character that two tokens share."""
    return character.isalnum() or character == "\ufffd"


def words_of(classes: np.ndarray) -> np.ndarray:
    """Which word each token belongs to: a number that grows with each token that does not continue a word. `classes`,
    of any shape, in text order."""
    return np.cumsum(classes.ravel() != INNER_PIECE).reshape(classes.shape)


def pieces_of(toki: Tokenizer) -> list[bytes] | None:
    """The bytes of each id, None where the tokenizer does not tell (which it says); see `Tokenizer.token_bytes`."""
    return toki.token_bytes()


def class_header(reference: str, order: str) -> list[str]:
    """The head of the table of the arrow by class."""
    return ["class", "tokens", reference, order, "arrow", "standard error", "share of the arrow"]


def class_cells(row: ClassRow) -> list[str]:
    """A row of the table of the arrow by class, under `class_header`."""
    return [
        row.name,
        f"{row.tokens:,}",
        f"{row.forward:.3f}",
        f"{row.backward:.3f}",
        f"{row.arrow:+.3f}",
        f"{row.arrow_se:.3f}",
        "unknown" if row.share is None else f"{100 * row.share:.0f} %",
    ]
