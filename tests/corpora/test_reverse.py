"""Reversed texts against Python's own reversal of the whole text, over blocks of all sizes."""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from modules.corpora.reverse import reverse_text
from modules.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ACCENT, ZWJ, VARIATION = "\u0301", "\u200d", "\ufe0f"
FAMILY = ZWJ.join("👨👩👧")
FLAGS = "🇫🇷🇬🇷🇫🇮"
HARD = [
    "a",
    "e" + ACCENT,
    "\r\n",
    "\n",
    FAMILY,
    FLAGS,
    "👍🏽",
    "❤" + VARIATION,
    "한국",
    "ᄒ" + "ᅡ" + "ᆫ",
    "क्षि",
    "é",
    " ",
    "𝒳",
    ACCENT,
    ZWJ,
]


def reversed_by(text: str, graphemes: bool, block_bytes: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text.txt"
        source.write_bytes(text.encode("utf-8"))
        out = reverse_text(source, Path(folder) / "out.txt", graphemes, block_bytes)
        assert source.read_bytes() == text.encode("utf-8")
        return out.read_bytes().decode("utf-8")


ANY_TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1
)  # a file of null bytes is taken for no text


@given(st.lists(st.sampled_from(HARD), min_size=1).map("".join) | ANY_TEXT, st.integers(4, 200))
def test_by_character(text, block_bytes):
    assert reversed_by(text, False, block_bytes) == text[::-1]


@given(st.lists(st.sampled_from(HARD), min_size=1).map("".join) | ANY_TEXT, st.integers(0, 200))
def test_by_grapheme(text, extra):
    clusters = regex.findall(r"\X", text)
    block_bytes = (
        max(len(cluster.encode()) for cluster in clusters) + 4 + extra
    )  # one cluster and the start of the next
    assert reversed_by(text, True, block_bytes) == "".join(clusters[::-1])


def test_what_the_two_do_to_accents_and_emoji():
    text = "cafe" + ACCENT + " " + FAMILY + "🇫🇷!"
    assert reversed_by(text, True, 1 << 20) == "!🇫🇷" + FAMILY + " e" + ACCENT + "fac"
    assert reversed_by(text, False, 1 << 20) == "!🇷🇫👧" + ZWJ + "👩" + ZWJ + "👨 " + ACCENT + "efac"


def test_a_cluster_without_end_is_cut():
    text = "a" + ACCENT * 10_000 + "b"
    out = reversed_by(text, True, 1000)
    assert sorted(out) == sorted(text) and out.startswith("b")


def test_the_script_reads_compressed_texts(tmp_path):
    text = "One line. Zwei Zeilen: é 🙂\n" * 300_000  # several blocks
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(text.encode("utf-8"), 1))
    subprocess.run(
        [sys.executable, ROOT / "reverse_text.py", "t.txt.gz", "r.txt"], cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "r.txt").read_bytes().decode("utf-8") == text[::-1]


def test_refusals(tmp_path):
    text = tmp_path / "t.txt"
    text.write_bytes(b"abc" * 5 + b"\xff" + b"def" * 5)
    for block_bytes in (4, 7, 15, 16, 1000):
        with pytest.raises(UserError, match="byte 15 "):
            reverse_text(text, tmp_path / "out.txt", block_bytes=block_bytes)
    text.write_bytes("abcé".encode()[:-1])
    with pytest.raises(UserError, match="byte 3 "):
        reverse_text(text, tmp_path / "out.txt")
    assert list(tmp_path.iterdir()) == [text]
    text.write_text("fine")
    for out, message in ((text, "itself"), (tmp_path / "out.txt.gz", "plain"), (tmp_path, "plain")):
        with pytest.raises(UserError, match=message):
            reverse_text(text, out)
    for source, message in ((tmp_path, "a folder"), (tmp_path / "none.txt", "no such text")):
        with pytest.raises(UserError, match=message):
            reverse_text(source, tmp_path / "out.txt")
