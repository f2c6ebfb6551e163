"""Cuts: the ids of the parts are those of the whole, by the library's word, for every text that could tempt a
cutter."""

import gzip
import itertools
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from modules.system.errors import UserError
from modules.tok_utils import cuts
from modules.tok_utils.cuts import pieces
from modules.tok_utils.text_source import TextSource, find_texts, text_name
from tests.tok_texts import CHARACTERS, hard_text, in_memory, sample_text, trained


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    """Trained on what the tests will be made of, so that merges go wherever the pattern lets them."""
    texts = ["".join(pair) * 3 for pair in itertools.product(CHARACTERS, repeat=2)]
    return trained(tmp_path_factory.mktemp("toki"), texts + [sample_text(20_000)], 1500)


def check(text, piece_bytes, toki):
    data, end, ids = text.encode("utf-8"), 0, []
    for piece in pieces(in_memory(text), piece_bytes, toki):
        assert piece.start == end < piece.stop and not piece.forced
        ids += toki.encode(data[piece.start : piece.stop].decode("utf-8"))  # strict: no character is torn
        end = piece.stop
    assert end == len(data) and ids == toki.encode(text)


@settings(max_examples=400)
@given(hard_text, st.integers(1, 60))
@example("a'" * 30 + "s" * 30, 10)
@example("\n" * 100 + "x" + " " * 100 + "'s", 7)
def test_pieces_encode_as_the_whole_does(toki, text, piece_bytes):
    check(text, piece_bytes, toki)


@given(st.text(alphabet=st.sampled_from("ab'st12.!éñ你٣"), max_size=200), st.integers(1, 40))
def test_so_they_do_without_any_space(toki, text, piece_bytes):
    check(text, piece_bytes, toki)


def test_a_proof_by_cases_of_the_contractions(toki):
    """Every text of three classes and the letters of contractions, cut at every place the rule allows."""
    for text in map("".join, itertools.product("srl'1! ", repeat=4)):
        whole = toki.encode(text)
        for kind in (cuts.BEFORE_SPACE, cuts.CLASS_CHANGE):
            for match in kind.finditer(text):
                assert toki.encode(text[: match.start()]) + toki.encode(text[match.start() :]) == whole, (
                    text,
                    match.start(),
                )


def test_pieces_are_about_as_long_as_asked(toki):
    lengths = [piece.stop - piece.start for piece in pieces(in_memory(sample_text(50_000)), 1000, toki)]
    assert max(lengths) <= 1000 and min(lengths[:-1]) > 800


def test_a_run_without_boundary_is_kept_up_to_its_limit_and_cut_beyond(toki, monkeypatch):
    monkeypatch.setattr(cuts, "LONGEST_RUN", 1000)
    monkeypatch.setattr(cuts, "STEP", 250)
    monkeypatch.setattr(cuts, "NEAR", 20)
    for size in (999, 1000):
        check("word " + "é" * (size // 2) + " " + "\n" * size + "x y", 300, toki)
    text = "start " + "é" * 5000 + " end"
    found = list(pieces(in_memory(text), 300, toki))
    forced = [piece for piece in found if piece.forced]
    assert forced and all(piece.stop - piece.start > 990 for piece in forced)
    data = text.encode("utf-8")
    assert "".join(data[piece.start : piece.stop].decode("utf-8") for piece in found) == text


def test_invalid_bytes_are_not_cut_in_a_way_that_changes_what_replaces_them(toki):
    data = (b"ab \xe2\x82 \xf0\x9f\x99 \xff\xfe\x80\x80 " + "é 你 🙂 ".encode()) * 20
    for piece_bytes in range(1, 60, 3):
        source = in_memory("")
        source._data, source.size = data, len(data)
        parts = [
            data[piece.start : piece.stop].decode("utf-8", "replace") for piece in pieces(source, piece_bytes, toki)
        ]
        assert "".join(parts) == data.decode("utf-8", "replace")


CHANGED = {
    "llama3": lambda backend: setattr(
        backend,
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(
                        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
                    ),
                    behavior="isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "prefix": lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "normalizer": lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_patterns_are_cut_where_they_too_see_nothing(tmp_path, name):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    CHANGED[name](backend)
    other = trained(tmp_path, [sample_text(30_000)], 900, backend)
    for piece_bytes in (50, 333, 2000):
        check(sample_text(20_000, seed=1), piece_bytes, other)


def compressed(tmp_path: Path, text: str) -> list[Path]:
    """The text plain and in each compression, in two members or frames each."""
    data = text.encode("utf-8")
    halves = data[: len(data) // 2], data[len(data) // 2 :]
    files = {
        "t.txt": data,
        "t.txt.gz": b"".join(map(gzip.compress, halves)),
        "t.txt.xz": b"".join(map(lzma.compress, halves)),
        "t.txt.zst": b"".join(map(zstandard.compress, halves)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in files]


def test_compressed_texts_have_the_same_pieces(tmp_path, toki):
    text = sample_text(3_000_000)
    found = []
    for path in compressed(tmp_path, text):
        with TextSource(path) as source:
            estimate = source.estimated_size()
            assert abs(estimate - len(text.encode())) < 0.3 * len(text.encode())
            found.append([(piece, source.read(piece.start, piece.stop)) for piece in pieces(source, 100_000, toki)])
    assert found[0] == found[1] == found[2] == found[3]
    assert b"".join(data for _, data in found[0]) == text.encode("utf-8")


def test_a_cut_off_archive_is_an_error(tmp_path, toki):
    for path in compressed(tmp_path, sample_text(100_000))[1:]:
        for keep in (0.9, 0.3):
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
            with pytest.raises(UserError, match="damaged or cut off"), TextSource(path) as source:
                list(pieces(source, 1000, toki))
        path.write_bytes(b"not an archive at all")
        with pytest.raises(UserError, match="damaged or cut off"), TextSource(path) as source:
            list(pieces(source, 1000, toki))


def test_texts_of_a_folder(tmp_path):
    for name in ("b.txt", "B.txt.gz", "a.txt.xz", "notes.md", "c.txt.zst"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.txt").mkdir()
    assert [path.name for path in find_texts(tmp_path)] == ["B.txt.gz", "a.txt.xz", "b.txt", "c.txt.zst"]
    assert find_texts(tmp_path / "notes.md") == [tmp_path / "notes.md"]
    assert [text_name(path) for path in find_texts(tmp_path)] == ["B", "a", "b", "c"]
    (tmp_path / "b.txt.xz").write_bytes(b"x")
    with pytest.raises(UserError, match="twice"):
        find_texts(tmp_path)
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        find_texts(tmp_path / "b.txt")
    with pytest.raises(UserError, match="no such text"):
        find_texts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="found none"):
        find_texts(tmp_path / "d.txt")
