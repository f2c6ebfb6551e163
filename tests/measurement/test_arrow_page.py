"""Token classes, losses of any text in both directions, and the page that shows them, in a real browser where there is
one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from torch import nn

from modules.data.orders import READ_BACKWARD, READ_FORWARD, Reading, positions
from modules.measurement import arrow_page, token_classes
from modules.measurement.text_losses import central_windows, text_losses
from modules.system.errors import UserError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def ids_and_pieces(tokens: list[str | bytes]) -> tuple[np.ndarray, list[bytes]]:
    raw = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    pieces = sorted(set(raw))
    return np.array([pieces.index(token) for token in raw], dtype=np.int64), pieces


# Classes
# ----------------------------------------------------------------------------------------------------------------


def test_each_token_of_a_text_falls_into_its_class():
    tokens = [
        "Def",
        "ine",
        " the",
        " par",
        "ser",
        ".",
        "\n\n",
        "It",
        " (",
        "re",
        "ads",
        ")",
        " ",
        " 2",
        "0",
        " x",
        "2",
        "\n   ",
        " #",
        "\n",
        " é",
        "è".encode()[:1],
        "è".encode()[1:],
        "-",
        "tail",
    ]
    names = [
        "start",
        "inner",
        "start",
        "start",
        "inner",
        "punct",
        "white",
        "newline",
        "punct",
        "start",
        "inner",
        "punct",
        "white",
        "digits",
        "digits",
        "start",
        "digits",
        "white",
        "newline",
        "white",
        "newline",
        "inner",
        "inner",
        "punct",
        "start",
    ]
    short = {
        "start": token_classes.WORD_START,
        "inner": token_classes.INNER_PIECE,
        "punct": token_classes.PUNCTUATION,
        "white": token_classes.WHITE_SPACE,
        "newline": token_classes.AFTER_NEWLINE,
        "digits": token_classes.DIGITS,
    }
    found = token_classes.classify(*ids_and_pieces(tokens))
    assert [token_classes.NAMES[i] for i in found] == [token_classes.NAMES[short[name]] for name in names]


def test_no_tokens_have_no_classes():
    assert len(token_classes.classify(np.zeros(0, dtype=np.int64), [b"a"])) == 0


# Losses of any text
# -----------------------------------------------------------------------------------------------------


class CountingModel(nn.Module):
    """Its "loss" tells what it was shown: 1000 x the token + how many text tokens stood before it."""

    def losses(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        assert (inputs_BT[:, 0] == 7).all() and torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])
        return 1000.0 * targets_BT + torch.arange(targets_BT.shape[1])


@given(n=st.integers(1, 200), context=st.integers(1, 40))
def test_text_losses_are_aligned_and_each_direction_sees_its_side(n, context):
    ids = np.arange(n)
    forward, backward = (
        text_losses(CountingModel(), ids, context, reading, bos_id=7) for reading in (READ_FORWARD, READ_BACKWARD)
    )
    assert np.array_equal(forward // 1000, ids) and np.array_equal(backward // 1000, ids)
    seen_before, seen_after = forward % 1000, backward % 1000
    window = min(context, n)
    assert (seen_before + seen_after == window - 1).all()  # one window for both
    away_from_ends = (ids >= context) & (ids < n - context)
    assert (np.minimum(seen_before, seen_after)[away_from_ends] >= window // 4 - 1).all()
    assert seen_before[0] == 0 and seen_after[-1] == 0


def test_losses_of_a_text_in_any_order():
    ids = np.arange(10, 40)
    listed = Reading(((2, 0, 3, 1, 4, 5),))
    for reading in (Reading(("even_odd",)), listed):
        losses = text_losses(CountingModel(), ids, 6, reading, bos_id=7)
        assert np.array_equal(losses // 1000, ids)
        starts, chosen, offset = central_windows(30, 6)
        assert np.array_equal(losses % 1000, np.argsort(positions(reading.orders[0], 6))[offset])
    with pytest.raises(UserError, match="a text of 5 tokens: expected at least the context's 6"):
        text_losses(CountingModel(), ids[:5], 6, Reading(((2, 0, 3, 1, 4, 5),)), bos_id=7)


@given(n=st.integers(1, 300), context=st.integers(1, 50))
def test_every_token_lies_in_its_window(n, context):
    starts, chosen, offset = central_windows(n, context)
    assert np.array_equal(starts[chosen] + offset, np.arange(n))
    assert (offset >= 0).all() and (offset < context).all() and starts[-1] + min(context, n) == n


def test_no_text_has_no_losses_and_the_models_mode_is_kept():
    model = CountingModel().train()
    assert len(text_losses(model, np.zeros(0, dtype=np.int64), 8, READ_FORWARD)) == 0
    text_losses(model, np.arange(20), 8, READ_FORWARD, bos_id=7)
    assert model.training


# The page
# ---------------------------------------------------------------------------------------------------------------


class Words(HTMLParser):
    """Reads back the shown words, their losses, and whatever could fetch or run something."""

    def __init__(self):
        super().__init__()
        self.words, self.losses, self.kinds, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if attrs.get("class", "").startswith("w "):
            self.words.append("")
            self.losses.append(attrs["data-losses"])
            self.kinds.append(attrs["class"][-1])

    def handle_data(self, data):
        if self.words and self.tags[-1] == "span":
            self.words[-1] += data

    def handle_endtag(self, tag):
        self.tags.append("/" + tag)


NASTY = [
    "<script>",
    "alert",
    "('",
    "x",
    "')",
    "</script>",
    " &",
    "amp",
    ";",
    ' "',
    "quoted",
    '"',
    " $",
    "title",
    "\x00",
    "\r\n",
    "next",
    "</div>",
]


def page_of(tokens: list[str]) -> tuple[str, np.ndarray, np.ndarray]:
    ids, pieces = ids_and_pieces(tokens)
    random = np.random.default_rng(0)
    forward, backward = random.gamma(2, 1, len(ids)), random.gamma(2, 1, len(ids))
    return arrow_page.page(pieces, ids, forward, backward, "A <title> & more"), forward, backward


def test_any_text_is_shown_as_text_and_nothing_is_fetched_or_run():
    source, forward, _ = page_of(NASTY)
    read = Words()
    read.feed(source)
    shown = "".join(read.words)
    assert shown == "".join(NASTY).replace("\x00", "\u2400").replace("\r\n", "\u240d↵\n")
    assert "script" not in read.tags and "link" not in read.tags and "img" not in read.tags
    assert not re.search(r"https?:|url\(|@import", source) and "A &lt;title&gt; &amp; more" in source
    assert len(read.words) < len(NASTY) and sum(
        float(re.search(r"^forward (\S+)", losses)[1]) for losses in read.losses
    ) == pytest.approx(forward.sum(), abs=0.01 * len(NASTY))


@given(st.lists(st.text(min_size=1, max_size=4), max_size=15))
def test_the_text_survives_the_page(tokens):
    tokens = [
        token for token in tokens if token.encode("utf-8", "ignore").decode() == token
    ]  # lone surrogates are no text
    source, *_ = page_of(tokens)
    read = Words()
    read.feed(source)
    shown = "".join(read.words).replace("↵\n", "\n")
    pictured = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n" else c for c in "".join(tokens))
    assert shown == pictured.replace("↵\n", "\n")


def test_colour_follows_the_sum_of_a_words_tokens():
    ids, pieces = ids_and_pieces([" ab", "cd", " ef", "."])
    source = arrow_page.page(pieces, ids, np.array([1.0, 5.0, 1.0, 2.0]), np.array([4.0, 1.0, 1.5, 2.0]), "t")
    read = Words()
    read.feed(source)
    assert read.words == [" abcd", " ef", "."] and read.kinds[:2] == ["b", "f"]  # 6 against 5 nats; 1 against 1.5
    assert read.losses[0].splitlines() == [
        "forward 6.00   backward 5.00   backward - forward -1.00",
        "' ab'   1.00   4.00   +3.00",
        "'cd'   5.00   1.00   -4.00",
    ]
    depths = [float(depth) for depth in re.findall(r"--a:([\d.]+)", source)]
    assert depths[0] > depths[1] > depths[2] == 0


def test_the_table_counts_words_with_all_their_tokens_and_says_so():
    ids, pieces = ids_and_pieces([" ab", "cd", " ef", "."])
    source = arrow_page.page(pieces, ids, np.array([1.0, 5.0, 1.0, 2.0]), np.array([4.0, 1.0, 1.5, 2.0]), "t")
    rows = re.findall(r"<tr><td>(.*?)</td><td>(\d+)</td><td>([\d.]+)</td>", source)
    assert rows == [("word", "3", "2.333"), ("punctuation", "1", "2.000")]
    assert token_classes.WHAT_CLASSES_ARE in source


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_the_words_in_both_colours(tmp_path):
    ids, pieces = ids_and_pieces([" cheap"] * 200 + [" dear"] * 200)
    path = arrow_page.write_arrow_page(
        tmp_path / "page.html",
        pieces,
        ids,
        np.where(np.arange(400) < 200, 1.0, 9.0),
        np.where(np.arange(400) < 200, 9.0, 1.0),
        title="<b>Two colours</b>",
    )
    browser = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=800,900",
    ]
    dom = subprocess.run(
        [*browser, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert (
        dom.count('<span class="w f"') == 200
        and dom.count('<span class="w b"') == 200
        and "&lt;b&gt;Two colours" in dom
    )
    subprocess.run(
        [*browser, f"--screenshot={tmp_path / 'page.png'}", path.as_uri()], check=True, capture_output=True, timeout=120
    )
    pixels = np.round(imread(tmp_path / "page.png")[:, :, :3] * 255).reshape(-1, 3)
    for rgb in ((0, 114, 178), (213, 94, 0)):  # over white, at the full depth of 8 nats
        depth = arrow_page.DEEPEST * np.tanh(8 / arrow_page.FULL_COLOUR)
        expected = depth * np.array(rgb) + (1 - depth) * 255
        assert (np.abs(pixels - expected).max(axis=1) < 3).mean() > 0.02
