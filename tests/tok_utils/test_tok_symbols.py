"""Symbols in place of tokens: by their definition, exact through cuts and files, and without a direction where they say
so."""

import random
import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modules.data.token_file import open_tokens
from modules.measurement import control
from modules.system.errors import UserError
from modules.tok_utils import create_custom_tokenizer, create_tokenizer, make_h5, tokenize_folder
from modules.tok_utils.cuts import pieces
from modules.tok_utils.inspection import check_kept
from modules.tok_utils.readers import Reading
from modules.tok_utils.symbols import symbols_of, train
from modules.tok_utils.symmetric import mirror_of, torn_ids, why_not_symmetric
from modules.tokenizer import get_tokenizer
from tests.tok_texts import hard_text, in_memory, sample_text

KINDS = ["characters", "bytes", "words", "kmers:2", "kmers:6"]
TEXT = sample_text(6000) + " ACGTACGTNNAC\nGATTACA <|endoftext|> <unk> \x1c\x1fx"


@pytest.fixture(scope="module")
def tokis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("symbols")
    (folder / "t.txt").write_bytes(TEXT.encode("utf-8"))
    return {kind: made(folder / "t.txt", folder, kind) for kind in KINDS}


def made(path, folder, kind, **options):
    name = kind.replace(":", "_")
    return get_tokenizer(create_tokenizer(path, folder, options.pop("name", name), symbols=kind, **options))


def symbols_in(text, kind):
    """The symbols of a text, by their definition."""
    white_space = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # Unicode's
    if kind == "characters":
        return list(text)
    if kind == "bytes":
        return [bytes([byte]) for byte in text.encode("utf-8")]
    if kind == "words":
        return [word for word in re.split(f"{white_space}+", text) if word]
    k, found = int(kind.partition(":")[2]), []
    for run in re.split(f"({white_space})", text):
        whole = len(run) // k * k
        found += [run[at : at + k] for at in range(0, whole, k)] + list(run[whole:])
    return found


def spelled(toki, ids):
    pieces = toki.token_bytes()
    return [pieces[i] for i in ids]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_symbols(tokis, kind):
    toki, symbols = tokis[kind], symbols_in(TEXT, kind)
    assert symbols_of(toki) == kind
    blank = " " if kind == "words" else ""
    wanted = [symbol if kind == "bytes" else (blank + symbol).encode("utf-8") for symbol in symbols]
    named = {"<|endoftext|>", "<unk>"} if kind == "words" else set()  # words of the text that are names of others
    wanted = [b"<unk>" if symbol in named else token for symbol, token in zip(symbols, wanted, strict=True)]
    assert spelled(toki, toki.encode(TEXT)) == wanted
    assert toki.bos_id not in toki.encode(TEXT)
    said = toki.detokenize(toki.tokenize(TEXT))
    assert said == (" ".join("<unk>" if word in named else word for word in symbols) if kind == "words" else TEXT)
    letters = set(TEXT) if kind.startswith("kmers") else set()
    alphabet = set(range(256)) if kind == "bytes" else (set(symbols) | letters) - named
    assert toki.vocab_size == len(alphabet) + (1 if kind == "bytes" else 2)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(hard_text | st.text("ACGT ", max_size=40), max_size=6).map("".join), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_text_in_pieces_has_the_ids_of_the_whole(tokis, kind, text, piece_bytes):
    toki = tokis[kind]
    data, ids = text.encode("utf-8"), []
    for piece in pieces(in_memory(text), piece_bytes, toki):
        assert not piece.forced
        ids += toki.encode(data[piece.start : piece.stop].decode("utf-8"))
    assert ids == toki.encode(text)


@pytest.mark.parametrize("kind", ["characters", "bytes", "words"])
@given(hard_text | st.lists(st.sampled_from(TEXT.split(" ")), max_size=30).map(" ".join))
@settings(max_examples=40, deadline=None)
def test_the_tokens_of_the_reversed_text_are_the_reversed_tokens(tokis, kind, text):
    toki = tokis[kind]
    assert why_not_symmetric(toki) is None
    if kind == "bytes":
        assume(not torn_ids(toki)[toki.encode(text)].any())
    mirror = mirror_of(toki)
    assert mirror.encode(text[::-1]) == toki.encode(text)[::-1]


def test_bytes_beyond_ascii_are_told_from_others(tokis):
    toki = tokis["bytes"]
    assert torn_ids(toki)[toki.encode("aé")].tolist() == [False, True, True]
    assert not torn_ids(tokis["characters"]).any() and not torn_ids(tokis["words"]).any()


def test_kmers_have_a_direction(tokis):
    toki = tokis["kmers:6"]
    assert "counted from the left" in why_not_symmetric(toki)
    with pytest.raises(UserError, match="expected a tokenizer without a direction"):
        mirror_of(toki)


@pytest.mark.parametrize("kind", KINDS)
def test_they_open_in_transformers_and_encode_alike(tokis, kind):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokis[kind].folder)
    text = TEXT.replace("<|endoftext|>", "").replace("<unk>", "") + "日本 never seen"
    assert theirs.encode(text, add_special_tokens=False) == tokis[kind].encode(text)
    assert theirs.bos_token_id == tokis[kind].bos_id and len(theirs) == tokis[kind].vocab_size


@given(st.lists(st.text("ab c\n", max_size=30), max_size=5), st.sampled_from(["characters", "words", "kmers:2"]))
@settings(max_examples=40, deadline=None)
def test_the_more_frequent_come_first(texts, kind):
    text = " ".join(texts) + " x"
    counts = Counter(symbols_in(text, kind))
    vocab = train([text], kind, 10_000).get_vocab(with_added_tokens=False)
    ranked = sorted((s for s in vocab if s != "<unk>" and (len(s) == 2 or not kind.startswith("kmers"))), key=vocab.get)
    assert [counts[symbol] for symbol in ranked] == sorted((counts[symbol] for symbol in ranked), reverse=True)


def test_what_has_no_room_is_said_and_becomes_unknown_or_letters(tmp_path, capfd):
    (tmp_path / "t.txt").write_text("one one one two two three")
    words = made(tmp_path / "t.txt", tmp_path, "words", vocab_size=4)
    assert "words: the text has 3; 1 of them, 16.67% of its symbols, have no id among 4" in capfd.readouterr().err
    assert words.vocab_size == 4 and words.encode("two three one") == [2, 0, 1] and words.unk_id == 0
    (tmp_path / "t.txt").write_text("ACACACGTGT TT")
    kmers = made(tmp_path / "t.txt", tmp_path, "kmers:2", vocab_size=8)
    assert "are written letter by letter" in capfd.readouterr().err
    assert spelled(kmers, kmers.encode("ACGTTT")) == [b"AC", b"G", b"T", b"T", b"T"]
    assert "5 ids" not in capfd.readouterr().err
    characters = made(tmp_path / "t.txt", tmp_path, "characters")
    assert "characters: the text has 5" in capfd.readouterr().err and characters.vocab_size == 7
    assert characters.encode("AxC") == [characters.encode("A")[0], characters.unk_id, characters.encode("C")[0]]


def test_rare_words_may_be_unknown_and_most_may_not(tmp_path, capfd):
    (tmp_path / "t.txt").write_text("one two three four five " * 20)
    words = made(tmp_path / "t.txt", tmp_path, "words", vocab_size=5)
    check_kept([tmp_path / "t.txt"], words)
    assert "of a sample 40.00% of the tokens are unknown" in capfd.readouterr().err
    (tmp_path / "t.txt").write_text("un deux trois quatre five " * 20)
    with pytest.raises(UserError, match="take a tokenizer that was trained on such text"):
        check_kept([tmp_path / "t.txt"], words)


def test_dna_from_fasta_to_h5_and_its_control(tmp_path, monkeypatch):
    rng = random.Random(1)
    records = ["".join(rng.choices("ACGT", k=length)) for length in (3001, 17, 5000)]
    records[2] = records[2][:2500] + "N" * 70 + records[2][2500:]
    lines = [f">r{n}\n" + "\n".join(re.findall(".{1,60}", record.lower())) + "\n" for n, record in enumerate(records)]
    (tmp_path / "dna").mkdir()
    (tmp_path / "dna" / "t.fa").write_text("".join(lines))
    reading = Reading(fasta_n="split")
    documents = [records[0], records[1], *records[2].split("N" * 70)]
    text = "\n".join(documents)
    for kind in ("characters", "kmers:6"):
        toki = made(tmp_path / "dna", tmp_path / kind[:5], kind, reading=reading)
        chunks = tokenize_folder(tmp_path / "dna", toki.folder, num_workers=1, chunk_bytes=700, reading=reading)
        token_file = open_tokens(make_h5(chunks, tmp_path / kind[:5], toki))
        assert token_file.tokens[:].tolist() == toki.encode(text) and token_file.symbols == kind
        assert token_file.symmetric == (kind == "characters") and token_file.text_bytes == len(text)
        for chunk in chunks.iterdir():
            chunk.unlink()
    assert toki.vocab_size <= 2 + 5 + 4096
    made_control = open_tokens(control.control_of(token_file, tmp_path / "control"))
    toki = get_tokenizer(next((tmp_path / "control").glob("*/tokenizer")))
    assert made_control.symbols == "kmers:6" and made_control.tokens[:].tolist() == toki.encode(text[::-1])
    assert Reading.of_identity(made_control.reading) == Reading(document_separator="\n")


def test_a_character_cut_in_two_by_a_block_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(create_custom_tokenizer, "FEED_BYTES", 2)
    (tmp_path / "t.txt").write_bytes("日本語🙂é".encode())
    toki = made(tmp_path / "t.txt", tmp_path, "characters")
    assert toki.vocab_size == 7 and toki.detokenize(toki.tokenize("🙂語")) == "🙂語"


def test_refusals(tmp_path, tokis):
    (tmp_path / "t.txt").write_text("text")
    for symbols in ("kmers", "kmers:", "kmers:0", "kmers:1", "kmers:-3", "kmers:x", "kmers:99", "letters", "", 6):
        with pytest.raises(UserError, match="symbols: expected"):
            create_tokenizer(tmp_path / "t.txt", tmp_path, "x", symbols=symbols)
    with pytest.raises(UserError, match="split: symbols .* are not split"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "x", symbols="words", split="symmetric")
    with pytest.raises(UserError, match="vocab_size: expected 257"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "x", symbols="bytes", vocab_size=256)
    with pytest.raises(UserError, match="vocab_size: expected 3"):
        create_tokenizer(tmp_path / "t.txt", tmp_path, "x", symbols="words", vocab_size=2)
    folder = tokis["words"].folder
    with pytest.raises(UserError, match="not one of symbols='characters'"):
        create_tokenizer(tmp_path / "t.txt", folder.parent, folder.name, symbols="characters")
    with pytest.raises(UserError, match="not one of split='gpt2'"):
        create_tokenizer(tmp_path / "t.txt", folder.parent, folder.name)
    assert create_tokenizer(tmp_path / "t.txt", folder.parent, folder.name, symbols="words") == folder
