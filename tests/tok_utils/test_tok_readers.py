"""Files become text and documents: compared with json, pyarrow and a parser of FASTA that is written anew here."""

import gzip
import json
import lzma
import os
import re
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenize_to_h5
from modules.corpora.reverse import reverse_text
from modules.data.token_file import open_tokens
from modules.measurement import control
from modules.system.errors import UserError
from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
from modules.tok_utils import readers as readers_module
from modules.tok_utils.inspection import check_is_text, taken_texts
from modules.tok_utils.readers import Reading
from modules.tok_utils.text_source import PLAIN, TextSource, find_texts, spread_samples
from modules.tokenizer import get_tokenizer
from tests.tok_texts import hard_text, sample_text

PACKED = {"": lambda data: data, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
documents = st.lists(hard_text, min_size=1, max_size=8)
separators = st.none() | st.sampled_from(["\n\n", "\n", " | ", "é", "aa"])
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole(path, reading=PLAIN, step=7):
    """A text read as the code that encodes reads it: forward, `step` bytes at a time, released behind; its document
    starts."""
    text, starts, position = b"", [], 0
    with TextSource(path, reading) as source:
        while data := source.read(position, position + step):
            starts += source.document_starts(position, position + len(data)).tolist()
            text, position = text + data, position + len(data)
            source.release(position)
        assert source.size == len(text) == source.estimated_size()
    return text, starts


def expected_of(texts, separator):
    """The joined text of documents, and where each starts."""
    texts = [text.encode("utf-8") for text in texts if text]
    starts, at = [], 0
    for text in texts:
        starts.append(at)
        at += len(text) + len(separator.encode("utf-8"))
    return separator.encode("utf-8").join(texts), starts


@pytest.mark.parametrize("packing", PACKED)
@given(documents, separators, st.booleans(), st.integers(1, 50))
@quick
def test_json_lines_are_what_json_reads(tmp_path, packing, texts, separator, ascii_only, step):
    lines = [json.dumps({"id": n, "text": text}, ensure_ascii=ascii_only) for n, text in enumerate(texts)]
    path = tmp_path / f"t.jsonl{packing}"
    path.write_bytes(PACKED[packing]("\n".join(lines).encode("utf-8") + b"\n" * (step % 3)))
    reading = Reading(document_separator=separator)
    assert whole(path, reading, step) == expected_of(texts, "\n\n" if separator is None else separator)


@given(
    documents,
    separators,
    st.integers(1, 50),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from(["string", "large", "dictionary"]),
)
@quick
def test_parquet_is_what_pyarrow_reads(tmp_path, texts, separator, step, rows, kind):
    column = pyarrow.array(texts, pyarrow.large_string() if kind == "large" else pyarrow.string())
    table = pyarrow.table(
        {"n": list(range(len(texts))), "body": column.dictionary_encode() if kind == "dictionary" else column}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
    reading = Reading(text_field="body", document_separator=separator)
    read = pyarrow.parquet.read_table(tmp_path / "t.parquet")["body"].to_pylist()
    assert whole(tmp_path / "t.parquet", reading, step) == expected_of(read, "\n\n" if separator is None else separator)


def fasta_documents(text, n):
    """Each record's letters, by the book: a line that begins with > is a header."""
    records = []
    for line in text.split("\n"):
        if line.startswith(">"):
            records.append("")
        else:
            records[-1] += re.sub(r"\s", "", line).upper()
    return records if n == "keep" else [part for record in records for part in re.split("N+", record)]


@pytest.mark.parametrize("n", ["keep", "split"])
@given(
    st.lists(
        st.tuples(st.text("ab >", max_size=9), st.lists(st.text("ACGTacgtNn- \r", max_size=12), max_size=5)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(sorted(PACKED)),
    st.integers(1, 9),
)
@quick
def test_fasta_is_what_a_plain_parser_reads(tmp_path, n, records, packing, block):
    text = "".join(f">{name}\n" + "".join(f"{row}\n" for row in rows) for name, rows in records)
    (tmp_path / f"t.fa{packing}").write_bytes(PACKED[packing](text.encode()))
    with pytest.MonkeyPatch.context() as patch:  # blocks end anywhere
        patch.setattr(readers_module, "READ_BYTES", block)
        found = whole(tmp_path / f"t.fa{packing}", Reading(fasta_n=n))
    assert found == expected_of(fasta_documents(text, n), "\n")


@pytest.mark.parametrize("packing", PACKED)
@given(
    st.lists(st.text("ab\n", max_size=6), max_size=12), st.sampled_from(["\n\n", "\n", "ab", "aba"]), st.integers(1, 20)
)
@quick
def test_a_plain_text_is_divided_where_its_separator_stands(tmp_path, packing, parts, separator, step):
    text = "x" + separator.join(parts) + "y"
    (tmp_path / f"t.txt{packing}").write_bytes(PACKED[packing](text.encode()))
    # behind every separator that no other overlaps or follows
    ends = {at + len(separator) for at in range(len(text)) if text.startswith(separator, at)}
    starts = [end for end in sorted(ends) if not any(end < other <= end + len(separator) for other in ends)]
    found = whole(tmp_path / f"t.txt{packing}", Reading(document_separator=separator), step)
    assert found == (text.encode(), [0, *starts])
    assert whole(tmp_path / f"t.txt{packing}", Reading(), step) == (text.encode(), [0])


def test_positions_can_be_read_again_and_samples_are_of_the_text(tmp_path):
    texts = [sample_text(5000, seed) for seed in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    joined, starts = expected_of(texts, "\n\n")
    with TextSource(tmp_path / "t.jsonl") as source:
        assert source.has_documents and not source.is_plain and source.size is None
        assert source.read(1000, 3000) == joined[1000:3000] and source.read(0, 10) == joined[:10]
        source.read(0, 40_000)
        assert source.document_starts(0, 40_000).tolist() == [start for start in starts if start < 40_000]
        assert source.document_starts(0, 1).dtype == np.uint64
        assert 0.5 < source.estimated_size() / len(joined) < 2
    assert all(sample in joined.decode() for sample in spread_samples(tmp_path / "t.jsonl"))
    with TextSource(tmp_path / "t.jsonl", Reading(document_separator="x")) as source:
        source.read(0, 50_000)
        source.release(30_000)
        with pytest.raises(ValueError, match="was released"):
            source.read(0, 1)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.parquet", "t.fa"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path, row = tmp_path / name, sample_text(1000)
    if name == "t.parquet":
        table = pyarrow.table({"text": [f"{n} {row}" for n in range(20_000)]})
        pyarrow.parquet.write_table(table, path, row_group_size=1000)
    elif name == "t.fa":
        path.write_bytes(b">one\n" + b"ACGTACGTAC\n" * 2_000_000)
    else:
        path.write_bytes(
            gzip.compress("".join(json.dumps({"text": f"{n} {row}"}) + "\n" for n in range(20_000)).encode(), 1)
        )
    tracemalloc.start()
    try:
        with TextSource(path) as source:
            position = 0
            while data := source.read(position, position + 100_000):
                position += len(data)
                source.release(position)
        assert position > 19_000_000 and tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_the_wrong_thing_in_a_file_is_one_line(tmp_path):
    table = pyarrow.table({"body": ["one", None], "n": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet")
    parquet = (tmp_path / "whole.parquet").read_bytes()
    good = b'{"text": "good"}\n'
    wrong = {
        "a.jsonl": (good + b"{text}\n", {}, "line 2: expected a JSON object, found .{text}"),
        "b.jsonl": (good + b'\n{"text": 5}', {}, "line 3: expected a string as 'text', found 5"),
        "c.jsonl": (good + b'{"text": null}', {}, "line 2: expected a string as 'text', found null"),
        "d.jsonl": (b'{"content": "x", "id": 1}', {}, "expected a field 'text', found 'content', 'id'; .*--text_field"),
        "e.jsonl": (b'["text"]', {}, r'line 1: expected a JSON object, found \["text"\]'),
        "f.jsonl": (b'{\n  "text": "x"\n}', {}, "line 1: expected a JSON object"),
        "g.jsonl.gz": (gzip.compress(b"no JSON"), {}, "line 1: expected a JSON object, found .no JSON"),
        "h.jsonl": (gzip.compress(good), {}, "found gzip data: name it .jsonl.gz"),
        "i.jsonl.gz": (good, {}, "damaged or cut off after 0 bytes"),
        "j.jsonl.gz": (gzip.compress(good * 99)[:-9], {}, "damaged or cut off"),
        "k.jsonl": (parquet, {}, "found a Parquet file: name it .parquet"),
        "l.json.gz": (gzip.compress(b"\n\n"), {}, "there is no document in it"),
        "m.jsonl": (b'{"text": ""}\n', {}, "there is no document in it"),
        "n.parquet": (parquet, {}, "expected a column 'text', found 'body', 'n'; .*--text_field"),
        "o.parquet": (parquet, {"text_field": "n"}, "expected strings in the column 'n', found int64"),
        "p.parquet": (parquet, {"text_field": "body"}, "row 2: expected a string as 'body', found null"),
        "q.parquet": (good, {}, "expected a Parquet file, found none"),
        "r.parquet": (parquet[:-20], {}, "expected a whole Parquet file"),
        "s.parquet": (gzip.compress(parquet), {}, "expected a Parquet file, found gzip data"),
        "t.fa": (b"ACGT\n>x\nAC\n", {}, "expected FASTA, which begins with a header line .>name., found .ACGT"),
        "u.fasta.gz": (gzip.compress(b">x\n\n>y\n"), {}, "there is no document in it"),
        "v.fna": (b">x\nACGT\nAC1T\n", {}, "line 3: expected the letters of a sequence, found .1"),
        "w.fa": (b"@read\nACGT\n+\nIIII\n", {}, "expected FASTA, which begins with a header"),
        "x.faa": (b">p\nMNK\n", {"fasta_n": "split"}, "in proteins N is an amino acid"),
        "y.fa": (b">x\nAC\n\x00\x00", {}, "expected FASTA, found .* null bytes|letters of a sequence"),
    }  # fmt: skip
    for name, (data, options, message) in wrong.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            check_is_text(tmp_path / name, Reading(**options))
            whole(tmp_path / name, Reading(**options), 1000)
        assert name in str(caught.value) and "\n" not in str(caught.value), name


def test_options_of_nonsense_are_one_line():
    for options, message in (
        ({"text_field": ""}, "text_field: expected a text"),
        ({"text_field": None}, "text_field: expected a text"),
        ({"document_separator": ""}, "document_separator: expected a text"),
        ({"document_separator": "\ud800"}, "lone surrogate"),
        ({"fasta_n": "skip"}, "fasta_n: expected keep or split"),
    ):
        with pytest.raises(UserError, match=message):
            Reading(**options)
    with pytest.raises(UserError, match="as JSON"):
        Reading.of_identity('{"colour": 1}')
    for reading in (Reading(), Reading("body", "\n", "split")):
        assert Reading.of_identity(reading.identity) == reading
    assert Reading().identity is None


def test_parquet_without_pyarrow_asks_for_it_by_name(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        taken_texts(tmp_path)


def test_names_of_texts(tmp_path):
    for name in ("b.jsonl", "a.parquet", "c.json.gz", "d.json", "e.parquet.gz", "f.JSONL.ZST", "g.csv"):
        (tmp_path / name).write_text("x")
    assert [text.name for text in find_texts(tmp_path)] == ["a.parquet", "b.jsonl", "c.json.gz", "f.JSONL.ZST"]
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(UserError, match="the same text twice"):
        find_texts(tmp_path)
    os.rename(tmp_path / "b.txt", tmp_path / "h.fa")
    with pytest.raises(UserError, match="h.fa and .*: expected sequences alone"):
        find_texts(tmp_path)


def test_what_is_no_unicode_is_refused_or_replaced_as_in_a_plain_text(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "t.jsonl").write_bytes(b'{"text": "good"}\n{"text": "a\xffb"}\n{"text": "c\\ud800d"}\n')
    with pytest.raises(UserError, match="not UTF-8 at byte 7"):
        create_tokenizer(tmp_path / "texts", tmp_path, "strict", 300)
    create_tokenizer(tmp_path / "texts", tmp_path, "replace", 300, errors="replace")


def test_shards_of_three_kinds_from_files_to_h5(tmp_path):
    """The text of the .h5 is that of the documents, in the order of the files' names; how it was read is part of what
    it is."""
    folder, texts = tmp_path / "shards", [sample_text(4000, seed) for seed in range(6)]
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"body": texts[:2]}), folder / "a.parquet")
    (folder / "b.jsonl.zst").write_bytes(
        zstandard.compress("".join(json.dumps({"body": text}) + "\n" for text in texts[2:4]).encode())
    )
    (folder / "c.txt").write_text("\n----\n".join(texts[4:]), encoding="utf-8", newline="")
    reading = Reading(text_field="body", document_separator="\n----\n")
    toki = get_tokenizer(create_tokenizer(folder, tmp_path, "toki", 500, reading=reading))
    chunks = tokenize_folder(folder, toki.folder, num_workers=1, reading=reading, chunk_bytes=3000)
    token_file = open_tokens(make_h5(chunks, tmp_path, toki))
    joined = ["\n----\n".join(texts[pair : pair + 2]) for pair in (0, 2, 4)]
    assert token_file.tokens[:].tolist() == [i for text in joined for i in toki.encode(text)]
    assert token_file.text_bytes == sum(len(text.encode()) for text in joined)
    assert Reading.of_identity(token_file.reading) == reading
    with pytest.raises(UserError, match="read in another way"):
        tokenize_folder(folder, toki.folder, reading=Reading(text_field="body"), chunk_bytes=3000)


def test_the_reversed_text_of_documents(tmp_path):
    texts = [sample_text(500, seed) for seed in range(5)] + ["", "é\u0301 x"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    reversed_texts = [text[::-1] for text in reversed(texts) if text]
    reverse_text(tmp_path / "t.jsonl", tmp_path / "plain.txt", block_bytes=100)
    assert (tmp_path / "plain.txt").read_bytes().decode() == "\n\n".join(reversed_texts)
    reverse_text(tmp_path / "t.jsonl", tmp_path / "lines.jsonl", block_bytes=100)
    assert whole(tmp_path / "lines.jsonl") == expected_of(reversed_texts, "\n\n")
    (tmp_path / "t.fa").write_text(">a\nACG\nTT\n>b\nGGA\n")
    reverse_text(tmp_path / "t.fa", tmp_path / "dna.txt")
    assert whole(tmp_path / "dna.txt", Reading(document_separator="\n")) == (b"AGG\nTTGCA", [0, 4])


def test_the_control_of_documents_has_them_reversed_in_order_and_content(tmp_path):
    texts = [sample_text(800, seed) + "\n\n" for seed in range(4)]  # what joins documents is in them too
    (tmp_path / "texts").mkdir()
    for number in range(2):
        lines = [json.dumps({"body": text}) + "\n" for text in texts[2 * number :][:2]]
        (tmp_path / "texts" / f"{number}.jsonl").write_text("".join(lines))
    reading = Reading(text_field="body", document_separator="<>")
    toki = get_tokenizer(create_tokenizer(tmp_path / "texts", tmp_path, "toki", 400, reading=reading))
    chunks = tokenize_folder(tmp_path / "texts", toki.folder, num_workers=1, reading=reading)
    made = control.control_of(open_tokens(make_h5(chunks, tmp_path, toki)), tmp_path)
    own = tmp_path / "texts_reversed"
    reading = Reading.of_identity(open_tokens(made).reading)
    found = [whole(text, reading, 1000) for text in find_texts(own / "texts_reversed")]
    turned = [text[::-1] for text in reversed(texts)]
    assert found == [expected_of(turned[:2], "><"), expected_of(turned[2:], "><")]
    toki = get_tokenizer(own / "tokenizer")
    assert open_tokens(made).tokens[:].tolist() == [i for text, _ in found for i in toki.encode(text.decode())]


def test_the_script_takes_how_a_text_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "g.txt").write_text("e4 e5 Nf3\nd4 d5\n" * 9)
    argv = (
        f"x --txt_path {tmp_path}/games --out_h5_folder {tmp_path} --tokenizer_folder {tmp_path} --tokenizer_name words"
    )
    monkeypatch.setattr(sys, "argv", [*argv.split(), "--symbols", "words", "--document_separator", "\\n"])
    tokenize_to_h5.main("", "", "", "")
    token_file = open_tokens(tmp_path / "g.h5")
    assert token_file.symbols == "words" and len(token_file.tokens) == 45 and token_file.vocab_size == 7
    assert Reading.of_identity(token_file.reading) == Reading(document_separator="\n")
    assert token_file.symmetric and "5 of 7 ids used" in capsys.readouterr().out
