"""The tokenizer without a direction: the tokens of the reversed text are the reversed tokens, and nothing is lost."""

import itertools
import json
import sys
import unicodedata
from collections import Counter

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tokenize_to_h5
from modules.system.errors import UserError
from modules.tok_utils import create_tokenizer, encoder, symmetric
from modules.tok_utils.encoder import Encoder
from modules.tok_utils.symmetric import learn, mirror_of, pieces_of, shares_blanks, torn_ids, train, untrained
from modules.tokenizer import Tokenizer, get_tokenizer
from tests.conftest import ROOT
from tests.tok_texts import SENTENCES, hard_text, sample_text

DECOMPOSED = "e\u0301"
# What tells left from right elsewhere: runs, repetitions, blanks at all places, contractions, characters of several
# bytes and code points.
REPETITIVE = "".join(
    f"{'an' * n} b{'an' * n}a {'l' * n}y {'-' * n}{'=' * (9 - n)} x{' ' * n}y\n{' ' * (n % 5)}isn't {'é' * n}\r\n "
    f"🙂🙂{'👩‍🚀' * (n % 3)} {'10' * n}\t{DECOMPOSED * n} "
    for n in range(1, 9)
)
TEXT = sample_text(60_000) + REPETITIVE * 20
BITS = [
    "an",
    "a",
    "n",
    "l",
    "ll",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "-",
    "==",
    "'t",
    "é",
    DECOMPOSED,
    "🙂",
    "👩‍🚀",
    "10",
    "0",
    "你好",
    "the ",
    " mat",
]
repetitive_text = st.lists(st.sampled_from(BITS), max_size=40).map("".join)


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("symmetric")
    (folder / "t.txt").write_bytes(TEXT.encode("utf-8"))
    return get_tokenizer(create_tokenizer(folder / "t.txt", folder, vocab_size=800, split="symmetric"))


@pytest.fixture(scope="module")
def mirror(toki):
    return mirror_of(toki)


@settings(max_examples=300, deadline=None)
@given(text=hard_text | repetitive_text)
def test_the_tokens_of_the_reversed_text_are_the_reversed_tokens(toki, mirror, text):
    ids, reversed_ids = np.array(toki.encode(text), dtype=int), np.array(mirror.encode(text[::-1]), dtype=int)[::-1]
    torn = torn_ids(toki)[ids]
    assert len(ids) == len(reversed_ids) and np.array_equal(ids[~torn], reversed_ids[~torn])
    # The bytes of a character without an id are in their own order in both.
    assert np.array_equal(np.sort(ids[torn]), np.sort(reversed_ids[torn]))


@settings(max_examples=300, deadline=None)
@given(text=hard_text | repetitive_text)
def test_nothing_is_lost(toki, mirror, text):
    assert toki.backend.decode(toki.encode(text), skip_special_tokens=False) == text
    assert mirror.backend.decode(mirror.encode(text), skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=hard_text | repetitive_text)
def test_pieces_are_mirrored_with_the_text_and_those_of_the_library(toki, text):
    assume(
        all(unicodedata.category(character) != "Cn" for character in text)
    )  # `regex` knows a newer Unicode than the library
    pieces = pieces_of(text)
    assert pieces_of(text[::-1]) == [piece[::-1] for piece in reversed(pieces)]
    library = toki.backend.pre_tokenizer.pre_tokenize_str(toki.backend.normalizer.normalize_str(text))
    to_bytes = untrained().pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in library] == ["".join(part for part, _ in to_bytes(piece)) for piece in pieces]


def test_on_the_text_it_was_trained_on_no_token_differs(toki, mirror):
    ids = toki.encode(TEXT)
    assert not torn_ids(toki)[ids].any() and mirror.encode(TEXT[::-1]) == ids[::-1]


def test_a_blank_is_shared_and_contractions_are_words_like_others():
    assert pieces_of("The cat isn't here,  is it?\n    x = -1 ") == [
        "The ",
        " cat ",
        " isn",
        "'",
        "t ",
        " here",
        ", ",
        " ",
        " is ",
        " it",
        "?",
        "\n   ",
        " x ",
        " = ",
        " -",
        "1 ",
    ]


def test_it_opens_in_transformers_and_encodes_alike(toki):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(toki.folder)
    for text in [*SENTENCES, REPETITIVE]:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == toki.encode(text) and theirs.decode(ids) == text
    assert theirs.bos_token_id == toki.bos_id == 0


def test_ids_are_bos_then_bytes_then_what_was_learned(toki):
    vocab = toki.definition["model"]["vocab"]
    assert toki.vocab_size == 800 and sorted(vocab.values()) == list(range(800))
    assert vocab["<|endoftext|>"] == 0 and all(len(token) == 1 for token, i in vocab.items() if 1 <= i <= 256)
    assert 0 not in toki.encode("<|endoftext|>")


def test_the_mirror_has_the_same_ids_and_its_mirror_is_the_tokenizer(toki, mirror):
    assert mirror.fingerprint != toki.fingerprint == mirror_of(mirror).fingerprint
    assert mirror.vocab_size == toki.vocab_size and mirror.bos_id == 0
    whole = np.flatnonzero(~torn_ids(toki))
    assert len(whole) > 600 and all(
        mirror.backend.decode([i]) == toki.backend.decode([i])[::-1] for i in whole if i != 0
    )


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(
        st.lists(st.sampled_from("abcdé🙂 "), min_size=1, unique=True).map("".join), unique=True, max_size=10
    )
)
def test_learning_from_the_mirrored_pieces_gives_the_mirror(pieces):
    """Where no candidate ties with its own mirror, which nothing can decide: no character twice in a piece, and counts
    far apart."""
    counts = {piece: 11**i for i, piece in enumerate(pieces)}
    tokens, merges, _ = learn(Counter(counts), 40)
    mirrored_tokens, mirrored_merges, _ = learn(Counter({piece[::-1]: count for piece, count in counts.items()}), 40)
    assert mirrored_tokens == [token[::-1] if isinstance(token, str) else token for token in tokens]
    assert mirrored_merges == [
        pair if isinstance(pair[0], bytes) else (pair[1][::-1], pair[0][::-1]) for pair in merges
    ]


class Naive:
    """`learn` by its definition: all pieces encoded anew, and all candidates counted anew, for every id."""

    def __init__(self, counts, room, parts=None):
        self.counts, self.parts, self.tokens, self.merges, self.byte_merges = counts, parts or {}, [], [], []
        characters = Counter()
        for text, count in [*counts.items(), *self.parts.items()]:
            characters.update(
                {character: count * text.count(character) for character in set(text) if not character.isascii()}
            )
        for character in sorted(characters, key=lambda character: (-characters[character], character))[: room // 4]:
            self.tokens.append(character)
            self.byte_merges.append((character.encode()[:1], character.encode()[1:]))
        while len(self.tokens) < room and (best := self.best()):
            if len(best) == 2:
                if best[1]:
                    self.merges.append(best)
                else:
                    self.byte_merges.append((best[0].encode()[:1], best[0].encode()[1:]))
            if "".join(best) not in self.tokens:
                self.tokens.append("".join(best))

    def encode(self, text, is_piece=True):
        """Tokens as strings, bytes that have not joined as numbers."""
        if is_piece and text in self.tokens:
            return [text]
        whole = {b"".join(pair).decode() for pair in self.byte_merges}
        parts = [
            part
            for character in text
            for part in ([character] if character.isascii() or character in whole else character.encode())
        ]
        for left, right in self.merges:
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
        return parts

    def texts(self):
        return [*((*item, True) for item in self.counts.items()), *((*item, False) for item in self.parts.items())]

    def best(self):
        gains = Counter()
        made = {left + right for left, right in self.merges}
        for text, count, is_piece in self.texts():
            tokens = self.encode(text, is_piece)
            if is_piece:
                gains[text,] += (len(tokens) - 1) * count
            for left, right in itertools.pairwise(tokens):
                if isinstance(left, str) and isinstance(right, str):
                    if left != right and left + right not in made:
                        gains[left, right] += count
                elif isinstance(left, int) and isinstance(right, int) and left >= 0xC0:
                    gains[bytes([left, right]).decode(), ""] += count
        ranked = [
            (
                -gain,
                min(candidate, tuple(part[::-1] for part in reversed(candidate))) if candidate[-1] else candidate,
                candidate,
            )
            for candidate, gain in gains.items()
            if gain
        ]
        return min(ranked)[2] if ranked else None

    def apart(self):
        """The characters that are written as bytes, and how often."""
        characters = Counter()
        for text, count, is_piece in self.texts():
            for byte, following in itertools.pairwise(self.encode(text, is_piece)):
                if isinstance(byte, int) and byte >= 0xC0:
                    characters[bytes([byte, following]).decode()] += count
        return characters


some_texts = st.dictionaries(st.text("abnéñ -", min_size=1, max_size=9), st.integers(1, 5), max_size=12)


@settings(max_examples=200, deadline=None)
@given(counts=some_texts, parts=some_texts, room=st.integers(0, 25))
def test_learning_is_by_its_definition(counts, parts, room):
    naive = Naive(counts, room, parts)
    tokens, merges, apart = learn(counts, room, parts)
    assert (tokens, merges) == (naive.tokens, naive.byte_merges + naive.merges)
    assert apart == naive.apart()


def test_a_text_without_blanks_is_learned_from_in_parts():
    text = "".join(np.random.default_rng(0).choice(list("acgt"), 20_000))
    toki = Tokenizer(ROOT, {}, train([[text]], 320))
    assert toki.vocab_size == 320 and len(toki.encode(text)) < 0.5 * len(text)


def test_training_spares_the_tokens_it_says():
    """The library encodes a text by as many tokens as training counted on."""
    text = sample_text(10_000).encode("ascii", "ignore").decode()
    for room in (0, 10, 40):
        naive = Naive(Counter(pieces_of(text)), room)
        expected = sum(count * len(naive.encode(piece)) for piece, count in naive.counts.items())
        assert len(Tokenizer(ROOT, {}, train([[text]], 257 + room)).encode(text)) == expected


def test_rare_characters_are_bytes_where_ids_are_few_and_the_user_is_told(capfd):
    rare = " ".join(map(chr, range(0x4E00, 0x4E40)))
    text = "The cat sat on the mat, é\n" * 100 + rare
    # 13 ids: the line's eight pieces, é, the bytes that the rare ones begin with, three of them.
    toki = Tokenizer(ROOT, {}, train([[text]], 270))
    assert toki.vocab_size == 270 and toki.backend.decode(toki.encode(text)) == text
    assert torn_ids(toki)[toki.encode(text)].sum() == 61 * 2 and not torn_ids(toki)[toki.encode("é")].any()
    assert (
        "61 rare characters ('七', '丄', '丅', '丆', '万', ...) got no id: at their 61 places" in capfd.readouterr().err
    )
    with_room = Tokenizer(ROOT, {}, train([[text]], 1000))
    assert not torn_ids(with_room)[with_room.encode(text)].any() and "rare" not in capfd.readouterr().err
    none = Tokenizer(ROOT, {}, train([[text]], 258))  # room for one id, characters of three bytes need two
    assert none.vocab_size == 258 and none.backend.decode(none.encode(text)) == text


@pytest.mark.parametrize(
    "merges, text, reason",
    [
        ([["a", "a"]], "baaab", "two equal tokens"),
        ([["a", "b"], ["ab", "ab"]], "cabababc", "two equal tokens"),
        ([["ab", "a"], ["a", "b"]], "abab", "once, after its parts"),
        ([["©", "a"]], "éa", "a part of a character"),
    ],
)
def test_a_tokenizer_with_a_direction_is_refused(tmp_path, monkeypatch, merges, text, reason):
    definition = json.loads(untrained().to_str())
    vocab = definition["model"]["vocab"]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    definition["model"]["merges"] = merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    toki = get_tokenizer(tmp_path)
    with pytest.raises(UserError, match=f"without a direction; .*{reason}"):
        mirror_of(toki)
    # It would not have held.
    monkeypatch.setattr(symmetric, "why_not_symmetric", lambda toki: None)
    assert mirror_of(toki).encode(text[::-1]) != toki.encode(text)[::-1]


def test_gpt2s_kind_is_refused():
    english = get_tokenizer(ROOT / "modules" / "tokenizers" / "en_tokenizer")
    assert not shares_blanks(english)
    with pytest.raises(UserError, match="it does not split the text alike from both ends"):
        mirror_of(english)


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", " ").replace("\t", " "), "no-spaces_at.all()" * 2000])
def test_parts_of_a_text_encode_as_in_the_whole(toki, text, monkeypatch):
    monkeypatch.setattr(encoder, "LIBRARY_PART_BYTES", 2000)
    encoded = Encoder(toki, fast=False).encode_chunk(text.encode("utf-8"))
    assert encoded.ids.tolist() == toki.encode(text) and encoded.forced == []


def test_from_text_to_h5_and_its_reversal(tmp_path, monkeypatch, capsys):
    for name, text in (("forth", TEXT), ("back", TEXT[::-1])):
        (tmp_path / f"{name}.txt").write_bytes(text.encode("utf-8"))
    tokens = {}
    for name in ("forth", "back"):
        arguments = [
            "--txt_path",
            tmp_path / f"{name}.txt",
            "--out_h5_folder",
            tmp_path,
            "--tokenizer_folder",
            tmp_path,
            "--tokenizer_name",
            name,
            "--vocab_size",
            800,
            "--num_workers",
            1,
            "--split",
            "symmetric",
        ]
        monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
        if name == "back":
            mirrored = mirror_of(get_tokenizer(tmp_path / "forth")).definition
            (tmp_path / "back").mkdir()
            (tmp_path / "back" / "tokenizer.json").write_text(json.dumps(mirrored))
        tokenize_to_h5.main("", "", "", "")
        with h5py.File(tmp_path / f"{name}.h5") as file:
            tokens[name] = file["tokens"][:]
    assert len(tokens["forth"]) > 10_000 and np.array_equal(tokens["back"], tokens["forth"][::-1])


def test_a_tokenizer_of_another_split_is_not_taken_for_the_one_wanted(tmp_path):
    (tmp_path / "t.txt").write_text("a small text")
    create_tokenizer(tmp_path / "t.txt", tmp_path, "symmetric", split="symmetric")
    create_tokenizer(tmp_path / "t.txt", tmp_path, "gpt2")
    first = (tmp_path / "symmetric" / "tokenizer.json").read_bytes()
    create_tokenizer(tmp_path / "t.txt", tmp_path, "symmetric", split="symmetric")
    with pytest.raises(UserError, match="not one of split='symmetric'"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "gpt2", split="symmetric")
    with pytest.raises(UserError, match="not one of split='gpt2'"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "symmetric")
    with pytest.raises(UserError, match="split: expected gpt2 or symmetric, found 'words'"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "other", split="words")
    assert (tmp_path / "symmetric" / "tokenizer.json").read_bytes() == first
    create_tokenizer(tmp_path / "t.txt", tmp_path, "again", split="symmetric")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == first
