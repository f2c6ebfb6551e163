"""A text on a terminal while it grows.

What grows at its end is printed as it comes. What grows at its front as well, or only there, is drawn anew with each
token, so that the text is pushed to the right; where the terminal cannot (a file, a pipe, Windows' console), it is
printed once it is whole. A character of which a part is still to come is held back.
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable

from modules.system.console import printable, write

LEFT_OUT = "⋮"
CUT = "\ufffd"  # what a decoder has for a part of a character


class Live:
    """One text on standard output. at_front, at_end: where it grows. `show` returns whether anybody still reads."""

    def __init__(self, at_front: bool, at_end: bool):
        self._at_front, self._at_end = at_front, at_end
        self._redraws = at_front and can_redraw()
        self._shown, self._rows = "", 0

    def show(self, text: str) -> bool:
        """The text so far."""
        text = text.lstrip(CUT) if self._at_front else text
        text = printable(text.rstrip(CUT) if self._at_end else text, keep="\n\t")
        if self._redraws:
            columns, rows = shutil.get_terminal_size()
            lines = fitted(text, columns - 1, rows - 1)
            alive = write(self._back() + "\n".join(lines))
            self._rows = len(lines) - 1
            return alive
        if not self._at_front and text.startswith(self._shown):
            new, self._shown = text[len(self._shown) :], text
            return write(new)
        return write("")

    def end(self, text: str) -> bool:
        """The whole text, and the end of its line."""
        text = printable(text, keep="\n\t")
        return write((self._back() if self._redraws else "") + text.removeprefix(self._shown) + "\n")

    def _back(self) -> str:
        """What takes the cursor to where the text begins, and the text away."""
        return "\r" + (f"\x1b[{self._rows}A" if self._rows else "") + "\x1b[J"


def can_redraw() -> bool:
    """Whether standard output is a terminal that can be told to move its cursor."""
    return os.name != "nt" and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def fitted(text: str, columns: int, rows: int) -> list[str]:
    """The lines of `text` at this width; where they are too many, the first and the last of them."""
    lines = [line for paragraph in text.expandtabs(4).split("\n") for line in wrapped(paragraph, max(2, columns))]
    if len(lines) <= max(3, rows):
        return lines
    first = (max(3, rows) - 1) // 2
    return [*lines[:first], LEFT_OUT, *lines[first + 1 - max(3, rows) :]]


def wrapped(paragraph: str, columns: int) -> Iterable[str]:
    """A line without line ends, cut where a terminal of so many columns must."""
    line, width = "", 0
    for character in paragraph:
        size = width_of(character)
        if width + size > columns:
            yield line
            line, width = "", 0
        line, width = line + character, width + size
    yield line


def width_of(character: str) -> int:
    """The columns that a character takes."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
