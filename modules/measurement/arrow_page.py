"""A text as an HTML page whose words are coloured by the direction, or order, that predicts them better.

The page is one file without scripts and without anything to fetch: it can be mailed, and opened in ten years. A word is
the tokens from one that starts it to the next; its losses are the sums of theirs. Blue words are cheaper forward,
vermilion ones backward (or in whichever two orders the page is of), deeper with the difference; pointing at a word
shows its losses and those of its tokens.
"""

import html
import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from string import Template

import numpy as np

from modules.data.orders import BACKWARD, FORWARD
from modules.measurement import token_classes
from modules.measurement.arrow import by_class
from modules.measurement.token_classes import class_cells, class_header
from modules.plots import DIRECTION_COLOURS
from modules.system.console import one_line
from modules.system.files import replacing

DIRECTIONS = (FORWARD, BACKWARD)
FULL_COLOUR = 3.0  # nats of difference at which the colour has three quarters of its depth
DEEPEST = 0.75  # opacity that black text stays readable on

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 17px/1.7 Georgia, serif; color: #111; background: #fff; max-width: 46em; margin: 2em auto;
  padding: 0 1em 6em; }
h1, h2, .legend, table, .w:hover::after, .w:focus::after { font-family: system-ui, sans-serif; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; }
.legend { font-size: 0.85em; line-height: 1.5; }
.bar { display: inline-block; width: 12em; height: 0.9em; vertical-align: middle; margin: 0 0.5em;
  border: 1px solid #999; background: linear-gradient(to right, rgba($forward_rgb, $deepest), rgba($forward_rgb, 0),
    rgba($backward_rgb, 0), rgba($backward_rgb, $deepest)); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; padding: 1em; }
.w { border-radius: 3px; outline: none; }
.f { background: rgba($forward_rgb, var(--a)); } .b { background: rgba($backward_rgb, var(--a)); }
.w:hover, .w:focus { box-shadow: 0 0 0 2px #333; }
.w:hover::after, .w:focus::after { content: attr(data-losses); position: fixed; left: 50%; bottom: 1em;
  transform: translateX(-50%); white-space: pre; background: #222; color: #fff; padding: 0.6em 1em;
  border-radius: 6px; font-size: 14px; line-height: 1.4; z-index: 1; }
table { border-collapse: collapse; font-size: 0.85em; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="legend">$summary</p>
<p class="legend">cheaper $reference<span class="bar"></span>cheaper $order. White: no difference.
Point at a word to see its losses in nats.</p>
<div class="text">$words</div>
<h2>By class of token</h2>
<table>
$rows
</table>
<p class="legend">Losses in nats per token; the arrow is $order minus $reference. $classes</p>
</body>
</html>
""")


def write_arrow_page(
    path: str | os.PathLike,
    pieces: Sequence[bytes],
    ids: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
    title: str = "Where the arrow of time lives",
    orders: tuple[str, str] = DIRECTIONS,
) -> Path:
    """Write the page of the text `ids` [n] with its `forward` and `backward` losses [n], nats in text order.

    `pieces[id]` are the bytes of a token. orders: what the two are called.
    """
    with replacing(path) as temporary:
        temporary.write_text(page(pieces, ids, forward, backward, title, orders), encoding="utf-8", newline="\n")
    return Path(path)


def page(
    pieces: Sequence[bytes],
    ids: np.ndarray,
    forward: np.ndarray,
    backward: np.ndarray,
    title: str,
    orders: tuple[str, str] = DIRECTIONS,
) -> str:
    """The page as one string."""
    reference, order = orders
    classes = token_classes.classify(ids, pieces)
    summary = (
        "No text."
        if not len(ids)
        else (
            f"{len(ids):,} tokens: {reference} {forward.mean():.3f}, {order} {backward.mean():.3f} nats per token, "
            f"arrow {backward.mean() - forward.mean():+.3f} ({100 * (backward.mean() / forward.mean() - 1):+.2f} %)."
        )
    )
    # Single tokens stand for windows here: the class table wants two or more, in text order.
    rows = (
        by_class(
            forward[:, None],
            backward[:, None],
            classes[:, None],
            token_classes.NAMES,
            token_classes.words_of(classes[:, None]),
        )
        if len(ids) > 1
        else []
    )
    return PAGE.substitute(
        title=visible(one_line(title)),
        summary=visible(summary),
        reference=visible(reference),
        order=visible(order),
        classes=token_classes.WHAT_CLASSES_ARE,
        deepest=DEEPEST,
        forward_rgb=rgb(DIRECTION_COLOURS["forward"]),
        backward_rgb=rgb(DIRECTION_COLOURS["backward"]),
        rows="\n".join(
            [table_row(class_header(reference, order), "th"), *(table_row(class_cells(row)) for row in rows)]
        ),
        words="".join(
            word_span([pieces[i] for i in ids[word]], forward[word], backward[word], orders)
            for word in words_of(classes)
        ),
    )


def words_of(classes: np.ndarray) -> list[slice]:
    """Stretches of tokens that are shown as one word: each token with the inner pieces that follow it."""
    starts = np.flatnonzero(np.diff(token_classes.words_of(classes), prepend=-1))
    return [slice(start, stop) for start, stop in pairwise([*starts, len(classes)])]


def word_span(pieces: Sequence[bytes], forward: np.ndarray, backward: np.ndarray, orders: tuple[str, str]) -> str:
    """One coloured word with its losses in an attribute, which the style sheet shows."""
    difference = backward.sum() - forward.sum()
    depth = DEEPEST * math.tanh(abs(difference) / FULL_COLOUR)
    one, other = orders
    lines = [f"{one} {forward.sum():.2f}   {other} {backward.sum():.2f}   {other} - {one} {difference:+.2f}"]
    if len(pieces) > 1:
        lines += [
            f"{decode([piece])!r}   {f:.2f}   {b:.2f}   {b - f:+.2f}"
            for piece, f, b in zip(pieces, forward, backward, strict=True)
        ]
    losses = visible("\n".join(lines)).replace("\n", "&#10;")
    return (
        f'<span class="w {"f" if difference > 0 else "b"}" style="--a:{depth:.2f}" tabindex="0" data-losses="{losses}">'
        f"{visible(mark_line_ends(decode(pieces)))}</span>"
    )


def mark_line_ends(text: str) -> str:
    """White space that holds a newline gets a sign that can be coloured and pointed at."""
    return text.replace("\n", "↵\n") if not text.strip() else text


def decode(pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode("utf-8", errors="replace")


def visible(text: str) -> str:
    """Escaped for text and attributes; control characters, which HTML forbids, as their Unicode pictures."""
    return html.escape(
        "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n" else c for c in text), quote=True
    )


def table_row(cells: Sequence[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def rgb(colour: str) -> str:
    """ "#0072B2" as "0, 114, 178"."""
    return ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
