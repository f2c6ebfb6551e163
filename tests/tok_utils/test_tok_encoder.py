"""The fast encoder against the library: the same ids on every text, and a difference is noticed."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from modules.system.errors import UserError
from modules.tok_utils import encoder as encoder_module
from modules.tok_utils import symmetric, tokenize_folder
from modules.tok_utils.encoder import Differs, Encoder, fast_tokenizer, id_dtype, not_utf8_at, seen_differently
from modules.tokenizer import BYTE_OF_CHARACTER, Tokenizer, get_tokenizer, merge_pairs
from tests.tok_texts import CHARACTERS, hard_text, llama2_like, sample_text, trained

ROOT = Path(__file__).resolve().parents[2]
WHITE_SPACE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
# The splits that gigatoken knows, as published tokenizers write them; None is GPT-2's.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERNS = {
    "gpt2": None,
    "llama3, cl100k, olmo": (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
    ),
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "qwen3.5": (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
}
tempting_text = (
    hard_text
    | st.text(max_size=200)
    | st.text(alphabet="ab", max_size=300)
    | st.text(alphabet="the cat\n", max_size=300)
    | st.text(alphabet=WHITE_SPACE + "a1'.", max_size=60)
    | st.lists(st.sampled_from(["'S", "'re", "'LL", "'d", "it", " ", "<|endoftext|>", "<|endof", "<s>", "1234"])).map(
        "".join
    )
)


def split_by(pattern: str | None) -> tokenizers.Tokenizer:
    """An untrained byte-level tokenizer with this split."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return backend


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("toki"), [sample_text(200_000)], 2000)


@pytest.fixture(scope="module")
def tokis(tmp_path_factory):
    """A tokenizer for each split, trained on what the tests are made of, so that merges go wherever the split lets
    them; and those of the repository and of the paper, where they lie beside it."""
    texts = ["".join(pair) * 3 for pair in itertools.product(CHARACTERS, repeat=2)] + [sample_text(50_000)]
    folder = tmp_path_factory.mktemp("tokis")
    made = {name: trained(folder / name, texts, 1500, split_by(pattern)) for name, pattern in PATTERNS.items()}
    saved = [
        ROOT / "modules" / "tokenizers" / "en_tokenizer",
        *(ROOT.parent / "shared" / "published" / "tokenizers").glob("*_*"),
    ]
    return made | {str(path): get_tokenizer(path) for path in saved}


def fast(toki: Tokenizer) -> Encoder:
    ready = fast_tokenizer(toki)
    assert not isinstance(ready, str), ready
    return Encoder(toki, True, ready=ready)


def test_same_ids_with_every_split(tokis):
    encoders = {name: fast(toki) for name, toki in tokis.items()}

    @settings(max_examples=400, deadline=None)
    @given(tempting_text)
    def check(text):
        for name, toki in tokis.items():
            assert encoders[name].encode(text.encode("utf-8")).tolist() == toki.encode(text), name

    check()


@pytest.mark.parametrize("alphabet", ["a", "ab", "the", "é你", "019", " ", " \n\t", "!?.'"])
def test_same_ids_in_long_runs(toki, alphabet):
    for length in (99, 501, 5000, 400_000):
        text = "".join(np.random.default_rng(length).choice(list(alphabet), length)) + "x"
        assert fast(toki).encode(text.encode("utf-8")).tolist() == toki.encode(text)


def test_same_ids_in_prose(toki):
    text = sample_text(500_000, seed=5)
    ids = fast(toki).encode(text.encode("utf-8"))
    assert ids.dtype == np.uint16 and ids.tolist() == toki.encode(text)


def test_a_written_special_token_is_text(toki):
    assert 0 not in fast(toki).encode(b"a<|endoftext|>b").tolist()


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PATTERNS)
def test_both_libraries_have_the_same_classes_but_where_it_is_known(tmp_path, name, step):
    """Each character between letters, digits and signs: merges over a border show whether there is one."""
    characters = list(BYTE_OF_CHARACTER)
    merges = [[first, second] for first in "a1!" for second in characters]
    tokens = characters + ["".join(merge) for merge in merges]
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    definition = json.loads(split_by(PATTERNS[name]).to_str()) | {"model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    toki = get_tokenizer(tmp_path)
    encoder = fast(toki)
    known = {code for first, last in encoder_module.SEEN_DIFFERENTLY for code in range(first, last + 1)}
    for start in range(0, 0x40000 if step > 1 else 0x110000, 1 << 14):
        codes = [code for code in range(start, start + (1 << 14)) if not 0xD800 <= code < 0xE000 and code not in known]
        block = map(chr, codes if start == 0 else codes[::step])
        text = "".join(f"a{c}a\n1{c}\n!{c}\n A{c}A\n{c}'s\n" for c in block)
        assert not seen_differently(text.encode("utf-8"))
        assert encoder.encode(text.encode("utf-8")).tolist() == toki.encode(text)
    some = sorted(known)[:: step * 4]
    assert all(seen_differently(f"a {chr(code)} b".encode()) for code in some)
    text = "plain text, " * 8000 + "".join(f"a{chr(c)}a\n1{chr(c)}\n{chr(c)}'s " for c in some) + "plain text, " * 8000
    assert encoder.encode(text.encode("utf-8")).tolist() == toki.encode(text)
    assert encoder._by_gigatoken(text.encode("utf-8")).tolist() != toki.encode(text)


@given(st.lists(st.text(max_size=5) | st.binary(max_size=3), max_size=12), st.integers(1, 9))
def test_the_first_byte_that_is_not_utf8(parts, size):
    data = b"".join(part if isinstance(part, bytes) else part.encode("utf-8") for part in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "DECODED_BYTES", size + 3)
        try:
            data.decode("utf-8")
            assert not_utf8_at(data) is None
        except UnicodeDecodeError as error:
            assert not_utf8_at(data) == error.start


def test_ids_in_any_order_merges_as_strings_and_whole_words(toki, tmp_path):
    """The special token last, words looked up before they are merged: as published tokenizers have it."""
    model = toki.definition["model"]
    count = len(model["vocab"])
    assert count % 7
    vocab = {token: (i * 7 + 3) % count for token, i in model["vocab"].items()} | {"Ġunmergeable": count}
    text = sample_text(50_000, seed=2) + " unmergeable"
    for ignore_merges in (False, True):
        definition = toki.definition | {
            "model": model
            | {
                "vocab": vocab,
                "merges": [" ".join(pair) for pair in merge_pairs(toki.definition)],
                "ignore_merges": ignore_merges,
            }
        }
        definition["added_tokens"] = [token | {"id": vocab[token["content"]]} for token in definition["added_tokens"]]
        folder = tmp_path / str(ignore_merges)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(definition))
        other = get_tokenizer(folder)
        ids = fast(other).encode(text.encode("utf-8")).tolist()
        assert ids == other.encode(text) != toki.encode(text) and (ids[-1] == count) == ignore_merges


def test_what_the_library_encodes(toki, tmp_path):
    model, split, special = (
        toki.definition["model"],
        toki.definition["pre_tokenizer"],
        toki.definition["added_tokens"][0],
    )
    changes = {
        "normalizes": {"normalizer": {"type": "NFC"}},
        "byte-level": {"pre_tokenizer": None},
        "not special": {"added_tokens": [special, special | {"id": 5, "content": "the", "special": False}]},
        "gigatoken does not know it": {
            "model": model | {"vocab": {k: i for k, i in model["vocab"].items() if k != "q"}}
        },
        "end_of_word_suffix": {"model": model | {"end_of_word_suffix": "</w>"}},
        "does not know it .*pre_tokenizer": {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\p{L}+|\P{L}+"}, "behavior": "Isolated", "invert": False},
                    split | {"use_regex": False},
                ],
            }
        },
    }
    for i, (message, change) in enumerate(changes.items()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "tokenizer.json").write_text(json.dumps(toki.definition | change))
        why = fast_tokenizer(get_tokenizer(tmp_path / str(i)))
        assert isinstance(why, str) and re.search(message, why), (message, why)
    backend = symmetric.train([[sample_text(20_000)]], 600)
    (tmp_path / "symmetric").mkdir()
    backend.save(str(tmp_path / "symmetric" / "tokenizer.json"))
    for other in (get_tokenizer(tmp_path / "symmetric"), llama2_like(tmp_path / "llama2", [sample_text(20_000)])):
        assert isinstance(fast_tokenizer(other), str)
        text = sample_text(30_000, 1)
        assert Encoder(other, False).encode(text.encode("utf-8")).tolist() == other.encode(text)


@pytest.mark.parametrize("same_token_twice", [False, True])
def test_random_merge_lists(tmp_path, same_token_twice):
    """Merges drawn at random, such as no training makes: two that make one token, parts that can never come about."""
    rng = np.random.default_rng(0)
    texts = ["".join(letters) for length in (1, 5, 9) for letters in itertools.product("ab", repeat=length)]
    for _ in range(30):
        tokens, merges = list("ab"), []
        for _ in range(8):
            pair = [tokens[i] for i in rng.integers(len(tokens), size=2)]
            if pair not in merges and (same_token_twice or "".join(pair) not in tokens):
                tokens.append("".join(pair))
                merges.append(pair)
        model = {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(dict.fromkeys([*BYTE_OF_CHARACTER, *tokens]))},
            "merges": merges,
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(split_by(None).to_str()) | {"model": model}))
        toki = get_tokenizer(tmp_path)
        encoder = fast(toki)
        assert [encoder.encode(text.encode()).tolist() for text in texts] == [toki.encode(text) for text in texts]


def test_the_type_of_ids():
    assert [id_dtype(size) for size in (257, 65536, 65537)] == [np.uint16, np.uint16, np.uint32]


# Words are forgotten


def random_words(seed: int, size: int) -> bytes:
    letters = np.random.default_rng(seed).integers(ord("a"), ord("z") + 1, size).astype(np.uint8)
    letters[::7] = ord(" ")
    return letters.tobytes()


@pytest.mark.parametrize("resident", [lambda: 1 << 40, lambda: None])
def test_a_process_that_grows_gets_a_new_tokenizer(toki, monkeypatch, resident):
    monkeypatch.setattr(encoder_module, "LEAST_BYTES", 100_000)
    monkeypatch.setattr(encoder_module, "BLIND_BYTES", 200_000)
    encoder = fast(toki)
    monkeypatch.setattr(encoder_module, "resident_bytes", resident)
    used = []
    for seed in range(6):
        data = random_words(seed, 100_001)
        assert encoder.encode(data).tolist() == toki.encode(data.decode())
        used.append(encoder._gigatoken)
    assert used.count(None) == (6 if resident() else 3)


# Verification


class Erring:
    """gigatoken, with an error every so many tokens: the id that `instead` has, if it has one."""

    def __init__(self, true, every: int, instead: dict[int, int]):
        self._true, self._every, self._instead = true, every, instead
        self.seen = self.errors = 0

    def encode_batch_padded(self, *arguments, **options):
        ids, lengths = self._true.encode_batch_padded(*arguments, **options)
        ids = ids.copy()
        first = -self.seen % self._every or self._every
        self.seen += ids.shape[1]
        for place in range(first, ids.shape[1], self._every):
            if (wrong := self._instead.get(int(ids[0, place]))) is not None:
                ids[0, place] = wrong
                self.errors += 1
        return ids, lengths


def by_length(toki) -> dict[int, list[int]]:
    found = {}
    for i, piece in enumerate(toki.token_bytes()):
        found.setdefault(len(piece), []).append(i)
    return found


def of_another_length(toki) -> dict[int, int]:
    lengths = by_length(toki)
    return {i: lengths[2 if length == 1 else 1][-1] for length, ids in lengths.items() for i in ids}


def of_the_same_length(toki) -> dict[int, int]:
    return {
        i: other
        for ids in by_length(toki).values()
        for i, other in zip(ids, ids[1:] + ids[:1], strict=True)
        if i != other
    }


def chunks_until_met(toki, encoder: Encoder, most: int) -> int | None:
    """After how many chunks of half a megabyte an error is noticed."""
    for number in range(most):
        data = random_words(number, 500_000)
        found = encoder.encode_chunk(data)
        if isinstance(found, Differs):
            right = toki.encode(data[: found.position].decode("utf-8", "ignore"))
            assert 0 <= found.position < len(data) and right
            return number
    return None


def test_an_error_in_a_million_tokens_is_met_where_it_changes_the_length(toki):
    """Every id stands for so many bytes: one that is wrong by them is met with certainty, in its chunk."""
    encoder = Encoder(toki, True, ready=Erring(fast_tokenizer(toki), 1_000_000, of_another_length(toki)))
    assert chunks_until_met(toki, encoder, 10) is not None


def test_an_error_of_the_same_length_is_met_as_often_as_samples_hold_it(toki):
    """A sample is 2 kB of a chunk. An id that is wrong every 1,000 tokens stands in one with a chance of 1 in 2 or so;
    every million tokens, 1 in 2,000 chunks of 4 MB: that is the limit of what is noticed."""
    other = of_the_same_length(toki)
    often = Erring(fast_tokenizer(toki), 1_000, other)
    assert chunks_until_met(toki, Encoder(toki, True, ready=often), 12) is not None
    seldom = Erring(fast_tokenizer(toki), 1_000_000, other)
    assert chunks_until_met(toki, Encoder(toki, True, ready=seldom), 6) is None and seldom.errors >= 1


def test_a_difference_ends_the_work_and_says_where_and_how_to_go_on(toki, tmp_path, monkeypatch):
    data = (sample_text(300_000) + "needle in the hay" + sample_text(200_000, 1)).encode("utf-8")
    (tmp_path / "t.txt").write_bytes(data)
    true, longest = fast_tokenizer(toki), int(np.argmax([len(piece) for piece in toki.token_bytes()]))

    class WrongAtTheNeedle:
        def encode_batch_padded(self, source, *arguments, **options):
            [text] = source.given
            ids, lengths = true.encode_batch_padded(original([text]), *arguments, **options)
            at = text.find(b"needle")
            if at >= 0:
                ids = ids.copy()
                ends = np.cumsum([len(toki.token_bytes()[i]) for i in ids[0]])
                ids[0, np.searchsorted(ends, at, side="right")] = longest
            return ids, lengths

    original = encoder_module.gigatoken.BytesSource

    class Source:
        def __init__(self, given):
            self.given = given

    monkeypatch.setattr(encoder_module.gigatoken, "BytesSource", Source)
    monkeypatch.setattr(encoder_module, "_gigatoken_of", lambda _: WrongAtTheNeedle())
    with pytest.raises(
        UserError, match=r"t\.txt: gigatoken and tokenizers .* from byte (\S+): .*--encoder tokenizers"
    ) as refused:
        tokenize_folder(tmp_path, toki.folder, num_workers=2, chunk_bytes=100_000)
    named = int(str(refused.value).split("from byte ")[1].split(":")[0].replace(",", ""))
    assert data.index(b"needle") - 12 <= named <= data.index(b"needle")
    kept = sorted((tmp_path / "t_tokens").glob("chunk_*.pt"))
    assert kept
    before = kept[0].stat().st_ino
    tokenize_folder(tmp_path, toki.folder, num_workers=2, chunk_bytes=100_000, encoder="tokenizers")
    assert kept[0].stat().st_ino == before


def test_a_difference_in_the_sample_ends_it_before_any_work(toki, tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text(sample_text(300_000), encoding="utf-8")
    wrong = Erring(fast_tokenizer(toki), 500, of_another_length(toki))
    monkeypatch.setattr(encoder_module, "_gigatoken_of", lambda _: wrong)
    with pytest.raises(UserError, match="t.txt: .*different ids in a sample of it: .*--encoder tokenizers"):
        tokenize_folder(tmp_path, toki.folder, num_workers=1)
    assert not (tmp_path / "t_tokens").exists()
    with pytest.raises(UserError, match='encoder: expected "gigatoken" or "tokenizers", found \'tiktoken\''):
        tokenize_folder(tmp_path, toki.folder, encoder="tiktoken")


# Documents


def token_of(toki, text: str, byte: int) -> int:
    """The token that holds a byte, by decoding every beginning of the ids."""
    ids = toki.encode(text)
    reached = 0
    for number, i in enumerate(ids):
        reached += len(toki.token_bytes()[i])
        if reached > byte:
            return number
    raise AssertionError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab'é你 \n1", min_size=1, max_size=12), min_size=1, max_size=8))
def test_documents_begin_with_the_token_that_holds_their_first_byte(toki, texts):
    starts = np.cumsum([0] + [len(text.encode("utf-8")) for text in texts[:-1]]).astype(np.uint64)
    whole = "".join(texts)
    expected = sorted({token_of(toki, whole, int(start)) for start in starts})
    for encoder in (fast(toki), Encoder(toki, False)):
        found = encoder.encode_chunk(whole.encode("utf-8"), starts)
        assert found.documents.dtype == np.uint64 and found.documents.tolist() == expected


def test_documents_where_bytes_are_replaced_or_the_text_is_normalized(toki, tmp_path):
    data = b"one\xff\xfe\n\ntwo \xe2\x82 three"
    starts = np.array([0, data.index(b"two"), data.index(b"three")], dtype=np.uint64)
    text = data.decode("utf-8", "replace")
    found = Encoder(toki, True, "replace").encode_chunk(data, starts)
    assert found.ids.tolist() == toki.encode(text) and found.documents.tolist() == [
        token_of(toki, text, len(text[: text.index(word)].encode())) for word in ("one", "two", "three")
    ]
    definition = toki.definition | {"normalizer": json.loads(normalizers.NFD().__getstate__())}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    other = get_tokenizer(tmp_path)
    words = ["é" * 20 + "\n", "ñandú\n", "plain\n"]
    starts = np.array([0, len(words[0].encode()), len((words[0] + words[1]).encode())], dtype=np.uint64)
    found = Encoder(other, False).encode_chunk("".join(words).encode("utf-8"), starts)
    lengths = np.cumsum([0] + [len(other.encode(word)) for word in words[:-1]])
    assert found.ids.tolist() == other.encode("".join(words)) and found.documents.tolist() == lengths.tolist()
