"""What comes in is looked at before the work: which texts are taken, whether they are texts, what a tokenizer keeps,
numbers, other commands."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from modules.corpora.reverse import reverse_text
from modules.corpora.synthetic import read_text
from modules.measurement import measure
from modules.system.errors import UserError
from modules.system.locks import alone
from modules.tok_utils import create_tokenizer, inspection, make_h5, tokenize_folder
from modules.tok_utils.bpe_training import LONGEST_RUN, without_long_runs
from modules.tok_utils.h5 import joined_crc32
from modules.tok_utils.inspection import check_is_text, check_kept, taken_texts
from modules.tok_utils.readers import NAMES
from modules.tokenizer import get_tokenizer
from tests.tok_texts import library_tokenizer, llama2_like, sample_text, trained
from tests.toy import ROOT

PROSE = "A black cab stood by the old mill; it's the 12th of May.\n" * 40


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("toki"), [sample_text(50_000)], 700)


# Which texts


def test_what_is_taken_and_what_is_left_out_is_said_with_sizes_and_reasons(tmp_path, toki, capfd):
    for name in ("a.txt", "B.TXT", "c.md", "notes"):
        (tmp_path / name).write_text(PROSE)
    (tmp_path / "d.Txt.GZ").write_bytes(gzip.compress(PROSE.encode()))
    (tmp_path / "sub").mkdir()
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "linked.txt").symlink_to(tmp_path / "c.md")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / ".hidden").write_text("x")
    h5_path = make_h5(tokenize_folder(tmp_path, toki.folder, num_workers=1), tmp_path / "sub", toki)
    said = capfd.readouterr().err
    size = len(PROSE)
    assert [line for line in said.splitlines() if line.startswith(("text:", "left out:"))] == [
        f"text: {tmp_path / 'B.TXT'}, 2.28 kB",
        f"text: {tmp_path / 'a.txt'}, 2.28 kB",
        f"text: {tmp_path / 'd.Txt.GZ'}, {(tmp_path / 'd.Txt.GZ').stat().st_size} B",
        f"text: {tmp_path / 'linked.txt'}, 2.28 kB",
        f"left out: {tmp_path / 'c.md'} (its name does not end in {NAMES})",
        f"left out: {tmp_path / 'gone.txt'} (a link to nothing)",
        f"left out: {tmp_path / 'notes'} (its name does not end in {NAMES})",
        f"left out: {tmp_path / 'pipe.txt'} (not a regular file)",
        f"left out: {tmp_path / 'sub'} (a folder: texts in it are not looked for)",
    ]
    with h5py.File(h5_path) as file:
        assert file["tokens"].attrs["text_bytes"] == 4 * size and file["tokens"][:].tolist() == 4 * toki.encode(PROSE)


def test_a_long_list_is_cut(tmp_path, capfd):
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text("x" * 1000)
    assert len(taken_texts(tmp_path)) == 30
    said = capfd.readouterr().err.splitlines()
    assert len(said) == inspection.LISTED + 1 and said[-1] == "... and 10 more texts; 30 kB in all"
    taken_texts(tmp_path)
    assert not capfd.readouterr().err, "said once"


def tar(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


DATA = PROSE.encode()
NO_TEXTS = {
    "a.tar.xz": (lzma.compress(tar("a.txt", DATA)), "inside its compression a tar archive"),
    "b.txt.gz": (gzip.compress(tar("a.txt", DATA)), "inside its compression a tar archive"),
    "c.txt.gz": (gzip.compress(gzip.compress(DATA)), "inside its compression gzip data"),
    "d.txt": (tar("a.txt", DATA), "a tar archive"),
    "e.zip": (zipped("a.txt", DATA), "a zip archive"),
    "f.docx": (zipped("word/document.xml", DATA), "a zip archive"),
    "g.pdf": (b"%PDF-1.7\n" + DATA, "a PDF document"),
    "h.txt": (gzip.compress(DATA), "name it .txt.gz"),
    "i.txt": (lzma.compress(DATA), "name it .txt.xz"),
    "j.txt": (zstandard.compress(DATA), "name it .txt.zst"),
    "k.txt": (bz2.compress(DATA), "bzip2"),
    "l.txt": (PROSE.encode("utf-16"), "text in UTF-16"),
    "m.txt": (PROSE.encode("utf-16-le"), "null bytes .*UTF-16, or no text"),
    "n.txt": (PROSE.encode("utf-32"), "text in UTF-32"),
    "o.txt": (bytes(2000), "null bytes"),
    "p.txt.xz": (DATA, "damaged or cut off after 0 bytes"),
    "q.txt.zst": (gzip.compress(DATA), "damaged or cut off after 0 bytes"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_refused_everywhere_before_the_work(tmp_path, toki, name):
    content, problem = NO_TEXTS[name]
    (tmp_path / name).write_bytes(content)
    for work in (
        lambda: tokenize_folder(tmp_path / name, toki.folder, errors="replace"),
        lambda: create_tokenizer(tmp_path / name, tmp_path, "tok", errors="replace"),
        lambda: reverse_text(tmp_path / name, tmp_path / "out.txt"),
        lambda: "".join(read_text(tmp_path / name)),
        lambda: measure.read_texts([str(tmp_path / name)], str(toki.folder)),
    ):
        with pytest.raises(UserError, match=problem):
            work()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_texts_of_all_scripts_with_few_nulls_are_texts(tmp_path):
    for text in (
        sample_text(100_000),
        "x",
        "\ufeffwith a mark",
        "PKs and %PDFs, BZhs, Rar!",
        "ustar " * 100,
        "日本語" * 100,
    ):
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        check_is_text(tmp_path / "t.txt")


# What the tokenizer keeps


def test_a_vocabulary_that_lacks_letters_is_refused_at_the_start(tmp_path):
    lacking = library_tokenizer(
        tmp_path / "tok",
        ["klk lkl kkl"] * 9,
        special=(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )
    (tmp_path / "tok" / "tokenizer_config.json").write_text('{"bos_token": "k"}')
    (tmp_path / "t.txt").write_text(PROSE)
    with pytest.raises(UserError, match="does not keep what it says: 'A black cab"):
        tokenize_folder(tmp_path / "t.txt", lacking.folder)
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "tok"}


def test_unknown_tokens_are_refused_where_many_and_said_where_few(tmp_path, capfd):
    toki = library_tokenizer(
        tmp_path / "tok", [PROSE], pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    )
    (tmp_path / "few.txt").write_text(PROSE * 9 + "Ω")
    check_kept([tmp_path / "few.txt"], toki)
    assert "are unknown to" in capfd.readouterr().err
    (tmp_path / "many.txt").write_text("Ωμέγα " * 99)
    with pytest.raises(UserError, match=r"of a sample \d\d.\d% of the tokens are unknown"):
        check_kept([tmp_path / "many.txt"], toki)


def test_lost_white_space_is_said(tmp_path, capfd):
    toki = library_tokenizer(
        tmp_path / "tok", [PROSE], pre_tokenizer=pre_tokenizers.WhitespaceSplit(), decoder=decoders.BPEDecoder()
    )
    (tmp_path / "t.txt").write_text("A black cab\n\nstood")
    check_kept([tmp_path / "t.txt"], toki)
    assert "does not keep all of its white space: 'A black cab" in capfd.readouterr().err


def test_sentencepiece_from_text_to_h5(tmp_path, capfd):
    toki = llama2_like(tmp_path / "tok", [PROSE])
    text = PROSE + "Ω 你好\n"
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    with h5py.File(make_h5(tokenize_folder(tmp_path / "t.txt", toki.folder, num_workers=1), tmp_path, toki)) as file:
        ids = file["tokens"][:]
    pieces = toki.token_bytes()
    assert (
        b"".join(pieces[i] for i in ids).decode() == " " + text and "it normalizes the text" in capfd.readouterr().err
    )


# Numbers


@pytest.mark.parametrize(
    "option, value",
    [
        ("num_workers", 0),
        ("num_workers", 10**9),
        ("num_workers", 1.5),
        ("num_workers", True),
        ("chunk_bytes", 0),
        ("chunk_bytes", 1 << 40),
        ("chunk_bytes", "4"),
        ("errors", "ignore"),
    ],
)
def test_numbers_out_of_bounds_are_refused(tmp_path, toki, option, value):
    (tmp_path / "t.txt").write_text(PROSE)
    with pytest.raises(UserError, match=f"^{option}: expected"):
        tokenize_folder(tmp_path, toki.folder, **{option: value})


@pytest.mark.parametrize(
    "option, value",
    [
        ("vocab_size", 10**12),
        pytest.param("vocab_size", 10**5000, id="huge"),
        ("vocab_size", -1),
        ("vocab_size", 300.0),
        ("sample_bytes", 0),
        ("sample_bytes", 1 << 70),
        ("sample_bytes", float("nan")),
    ],
)
def test_numbers_out_of_bounds_are_refused_in_training(tmp_path, option, value):
    (tmp_path / "t.txt").write_text(PROSE)
    with pytest.raises(UserError, match=f"^{option}: expected"):
        create_tokenizer(tmp_path, tmp_path, **{option: value})
    assert len(list(tmp_path.iterdir())) == 1


def test_three_thousand_workers_become_a_few(tmp_path, toki, capfd, monkeypatch):
    monkeypatch.setattr("modules.tok_utils.chunks.available_cores", lambda: 1)
    (tmp_path / "t.txt").write_text(PROSE)
    tokenize_folder(tmp_path, toki.folder, num_workers=3000)
    assert (
        "num_workers: 3,000 are more than 4 for each of 1 cores, which would wait for each other: 4 it is"
        in capfd.readouterr().err
    )


# Long runs


def test_a_text_without_blanks_trains_in_bounded_pieces_and_says_so_once(tmp_path, capfd):
    letters = "".join(
        np.random.default_rng(0).choice(list("etaoinshrdlu"), 400_000)
    )  # one word of 400 kB would take minutes
    (tmp_path / "t.txt").write_text(letters + "\n" + letters)
    toki = get_tokenizer(create_tokenizer(tmp_path / "t.txt", tmp_path, "tok", vocab_size=2000))
    assert toki.vocab_size == 2000 and capfd.readouterr().err.count("are cut at that length for training") == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("aé1. \u0301"), st.integers(1, 2 * LONGEST_RUN + 5)), max_size=6))
def test_only_runs_beyond_the_bound_are_cut(runs):
    line = "".join(character * length for character, length in runs)
    parts = without_long_runs(line)
    kinds = line.translate({ord("é"): "a", 0x301: "."})
    longest = max((len(list(run)) for _, run in itertools.groupby(kinds)), default=0)
    assert "".join(parts) == line and (len(parts) > 1) <= (longest >= LONGEST_RUN)
    cuts = list(itertools.accumulate(map(len, parts)))[:-1]
    assert all(len(set(kinds[cut - LONGEST_RUN : cut])) == 1 for cut in cuts)
    assert all(
        len(list(run)) <= LONGEST_RUN
        for part in parts
        for _, run in itertools.groupby(part.translate({ord("é"): "a", 0x301: "."}))
    )


# Checksums


@settings(deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_checksums_of_two_parts_join(first, second):
    assert joined_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_the_h5_carries_the_checksum_of_all_its_tokens_and_the_script_checks_it(tmp_path, toki):
    (tmp_path / "t.txt").write_text(sample_text(100_000))
    path = make_h5(tokenize_folder(tmp_path, toki.folder, num_workers=1, chunk_bytes=10_000), tmp_path, toki)
    with h5py.File(path) as file:
        tokens, offset = file["tokens"][:], file["tokens"].id.get_offset()
        assert file["tokens"].attrs["tokens_crc32"] == zlib.crc32(tokens)
    check = [sys.executable, ROOT / "tokenize_to_h5.py", "--check", path]
    fine = subprocess.run(check, capture_output=True, text=True, check=True)
    assert f"{len(tokens):,} tokens" in fine.stdout and "checksum" in fine.stdout
    data = bytearray(path.read_bytes())
    data[offset + 2] ^= 1
    path.write_bytes(data)
    damaged = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (
        damaged.returncode == 1
        and damaged.stderr.startswith("error: ")
        and "damaged" in damaged.stderr
        and damaged.stderr.count("\n") == 1
    )


# Texts to be shown


def test_of_a_long_text_only_what_is_shown_is_read(tmp_path, toki, monkeypatch, capfd):
    text = sample_text(400_000)
    (tmp_path / "t.txt").write_bytes(text.encode() + b"\xff")  # not read so far
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(measure, "TEXT_PAGE_TOKENS", 50_000)
    shown = measure.read_texts([str(tmp_path / "t.txt"), str(tmp_path / "z.txt.gz")], str(toki.folder))
    for ids in shown.values():
        assert ids.tolist() == toki.encode(text)[:50_000]
    assert capfd.readouterr().err.count("the page will show its first 50,000 tokens") == 2
    monkeypatch.setattr(measure, "TEXT_PAGE_TOKENS", 10**9)
    assert list(measure.read_texts([str(tmp_path / "z.txt.gz")], str(toki.folder)).values())[0].tolist() == toki.encode(
        text
    )
    with pytest.raises(UserError, match="expected UTF-8 text"):
        measure.read_texts([str(tmp_path / "t.txt")], str(toki.folder))


def test_a_compressed_text_can_be_mirrored(tmp_path):
    (tmp_path / "z.txt.xz").write_bytes(lzma.compress(("é🙂" * 100_000).encode()))
    assert "".join(read_text(tmp_path / "z.txt.xz")) == "é🙂" * 100_000
    (tmp_path / "torn.txt").write_bytes("abcé".encode()[:-1])
    with pytest.raises(UserError, match="expected UTF-8 text"):
        "".join(read_text(tmp_path / "torn.txt"))


# Two commands


def test_a_lock_is_waited_for_gone_with_its_holder_and_leaves_nothing(tmp_path, capfd):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from modules.system.locks import alone\n"
        f"with alone(Path({str(tmp_path / 'x')!r})): print(1, flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    threading.Timer(0.3, holder.kill).start()  # as a user does who has lost patience
    with alone(tmp_path / "x") as held:
        assert held and holder.wait() == -9
    assert "another process is at work on it" in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_without_locks_the_work_goes_on_with_a_line(tmp_path, capfd, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", lambda *_, **__: none())
    with alone(tmp_path / "x") as held:
        assert not held
    assert "no lock can be had here (No locks available)" in capfd.readouterr().err


def test_the_same_command_twice_at_once_makes_the_same_file_once(tmp_path):
    """From training the tokenizer to the .h5; the second waits at each step, and finds it done."""
    (tmp_path / "t.txt").write_text(sample_text(1_500_000))
    command = [
        sys.executable,
        ROOT / "tokenize_to_h5.py",
        "--txt_path",
        "t.txt",
        "--out_h5_folder",
        "out",
        "--tokenizer_folder",
        ".",
        "--tokenizer_name",
        "tok",
        "--vocab_size",
        "600",
        "--num_workers",
        "1",
    ]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert "".join(error for _, error in outputs).count("training a tokenizer") == 1
    toki = get_tokenizer(tmp_path / "tok")
    with h5py.File(tmp_path / "out" / "t.h5") as file:
        assert file["tokens"][:].tolist() == toki.encode(sample_text(1_500_000))
    assert {path.name for path in tmp_path.iterdir()} == {"t.txt", "t_tokens", "out", "tok"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["t.h5"]
