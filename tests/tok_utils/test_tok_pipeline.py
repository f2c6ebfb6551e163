"""Text to .h5 with real files: the ids are those of the whole text, whatever the road."""

import gzip
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zstandard

from modules import tok_utils
from modules.data.token_file import open_tokens
from modules.system.errors import UserError
from modules.tok_utils import chunks, create_tokenizer, disk, make_h5, progress, tokenize_folder
from modules.tok_utils import job as job_module
from modules.tok_utils.encoder import Encoder
from modules.tok_utils.text_source import TextSource
from modules.tokenizer import get_tokenizer
from tests.tok_texts import sample_text, trained

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 40_000


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.fixture(autouse=True)
def as_many_threads_as_asked_for(monkeypatch):
    """Though the texts are small."""
    monkeypatch.setattr(chunks, "BYTES_A_THREAD", 1)


@pytest.fixture(scope="module")
def toki(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("toki"), [sample_text(100_000)], 1500)


def run(folder: Path, toki, **options) -> Path:
    """Both steps, in small chunks."""
    return make_h5(
        tokenize_folder(folder, toki.folder, **({"num_workers": 1, "chunk_bytes": CHUNK} | options)),
        folder / "out",
        toki,
    )


def ids_in(h5_path: Path) -> list[int]:
    with h5py.File(h5_path) as file:
        return file["tokens"][:].tolist()


def test_the_star_import_is_the_three_names():
    names = {}
    exec("from modules.tok_utils import *", names)
    assert set(names) - {"__builtins__"} == set(tok_utils.__all__) == {"create_tokenizer", "tokenize_folder", "make_h5"}


def test_the_three_calls_of_the_readme(tmp_path):
    """In a script without `if __name__ == '__main__'`, run from another folder."""
    text = sample_text(300_000)
    write(tmp_path / "english" / "english.txt", text)
    write(
        tmp_path / "script.py",
        f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from modules import tokenizer
from modules.tok_utils import *
txt_path, out_h5_folder, tokenizer_folder, tokenizer_name = 'english/english.txt', 'out', 'tokenizers', 'mine'
create_tokenizer(txt_path, tokenizer_folder, tokenizer_name=tokenizer_name)
tokenize_folder(os.path.dirname(txt_path), os.path.join(tokenizer_folder, tokenizer_name))
toki = tokenizer.get_tokenizer(m_path=os.path.join(tokenizer_folder, tokenizer_name))
print(make_h5(os.path.dirname(txt_path), out_h5_folder, toki))
""",
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path("out/english.h5")
    toki = get_tokenizer(tmp_path / "tokenizers" / "mine")
    with h5py.File(tmp_path / "out" / "english.h5") as file:
        tokens = file["tokens"]
        assert (
            list(file) == ["tokens"] and tokens.chunks is None and tokens.id.get_offset() and tokens.dtype == np.uint16
        )
        assert tokens[:].tolist() == toki.encode(text)
        assert (
            tokens.attrs["vocab_size"] == toki.vocab_size and tokens.attrs["tokenizer_fingerprint"] == toki.fingerprint
        )
        assert tokens.attrs["bos_id"] == 0 and tokens.attrs["text_bytes"] == len(text.encode("utf-8"))
    assert (tmp_path / "english" / "english.txt").read_bytes() == text.encode("utf-8")


def test_the_same_tokens_for_any_compression_and_the_same_bytes_for_any_number_of_workers(tmp_path, toki):
    text = sample_text(600_000)
    data = text.encode("utf-8")
    wanted = None
    for name, content in (
        ("t.txt", data),
        ("t.txt.gz", gzip.compress(data)),
        ("t.txt.xz", lzma.compress(data)),
        ("t.txt.zst", zstandard.compress(data)),
    ):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(content)
        os.chmod(folder / name, 0o444)
        before = (folder / name).stat()
        h5_path = run(folder, toki, num_workers=1)
        assert h5_path == folder / "out" / "t.h5"
        wanted = wanted or ids_in(h5_path)
        assert ids_in(h5_path) == wanted
        by_one = h5_path.read_bytes()
        shutil.rmtree(folder / "t_tokens")
        assert run(folder, toki, num_workers=3).read_bytes() == by_one
        after = (folder / name).stat()
        assert (folder / name).read_bytes() == content and (after.st_mtime_ns, after.st_mode) == (
            before.st_mtime_ns,
            before.st_mode,
        )
    assert ids_in(h5_path) == toki.encode(text)


def test_threads_are_as_many_as_asked_for_but_no_more_than_do_good(tmp_path, toki, monkeypatch, capfd):
    made = []
    monkeypatch.setattr(chunks, "Encoder", lambda *arguments: made.append(0) or Encoder(*arguments))
    monkeypatch.setattr(chunks, "available_cores", lambda: 2)
    write(tmp_path / "t.txt", sample_text(30_000))
    for wanted, bytes_a_thread, threads in ((None, 1, 2), (3, 1, 3), (100, 1, 8), (3, 1 << 20, 1), (3, 20_000, 2)):
        monkeypatch.setattr(chunks, "BYTES_A_THREAD", bytes_a_thread)
        made.clear()
        run(tmp_path, toki, num_workers=wanted)
        assert len(made) == threads
        shutil.rmtree(tmp_path / "t_tokens")
    assert "num_workers: 100 are more than 4 for each of 2 cores" in capfd.readouterr().err


def test_several_texts_come_in_the_order_of_their_names(tmp_path, toki):
    texts = {"b.txt": sample_text(70_000, 1), "a.txt.gz": sample_text(90_000, 2), "c.txt": "\n one more"}
    folder = tmp_path / "many"
    for name, text in texts.items():
        write(folder / name, text)
    (folder / "a.txt.gz").write_bytes(gzip.compress(texts["a.txt.gz"].encode("utf-8")))
    h5_path = run(folder, toki)
    assert h5_path.name == "many.h5"
    assert ids_in(h5_path) == [i for name in sorted(texts) for i in toki.encode(texts[name])]
    # One text of the folder, by its path, has chunks of its own.
    assert ids_in(
        make_h5(tokenize_folder(folder / "c.txt", toki.folder, num_workers=1), tmp_path, toki)
    ) == toki.encode(texts["c.txt"])
    with pytest.raises(UserError, match="2 folders of chunks"):
        make_h5(folder, tmp_path, toki)


def test_a_tokenizer_of_another_kind_goes_through_the_library_and_says_so(tmp_path, toki, capfd):
    import json

    definition = toki.definition | {"normalizer": {"type": "NFC"}}
    write(tmp_path / "other" / "tokenizer.json", json.dumps(definition))
    other = get_tokenizer(tmp_path / "other")
    text = sample_text(300_000)
    write(tmp_path / "t" / "t.txt", text)
    assert ids_in(run(tmp_path / "t", other)) == other.encode(text)
    assert capfd.readouterr().err.count("it normalizes the text") == 1


def test_more_than_65536_ids_are_uint32(tmp_path, toki):
    import json

    model = toki.definition["model"]
    definition = toki.definition | {"model": model | {"vocab": {token: i * 100 for token, i in model["vocab"].items()}}}
    write(tmp_path / "wide" / "tokenizer.json", json.dumps(definition))
    wide = get_tokenizer(tmp_path / "wide")
    write(tmp_path / "t" / "t.txt", sample_text(100_000))
    h5_path = run(tmp_path / "t", wide)
    with h5py.File(h5_path) as file:
        assert file["tokens"].dtype == np.uint32 and file["tokens"].attrs["vocab_size"] == wide.vocab_size > 1 << 16
    assert ids_in(h5_path) == wide.encode(sample_text(100_000))


# Chunks and documents


def test_chunks_are_what_torch_would_have_written_and_need_no_torch(tmp_path, toki):
    write(tmp_path / "t.txt", sample_text(100_000))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
         "from modules.tok_utils import make_h5, tokenize_folder; from modules.tokenizer import get_tokenizer\n"
         f"folder = tokenize_folder({str(tmp_path)!r}, {str(toki.folder)!r}, num_workers=1, chunk_bytes={CHUNK})\n"
         f"make_h5(folder, {str(tmp_path / 'out')!r}, get_tokenizer({str(toki.folder)!r}))\n"
         "print('torch' in sys.modules, 'awkward' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False False\n"
    wanted = (tmp_path / "out" / "t.h5").read_bytes()
    ids = []
    for chunk in sorted((tmp_path / "t_tokens").glob("chunk_*.pt")):
        for mapped in (True, False):
            contents = torch.load(chunk, weights_only=True, mmap=mapped)
            assert contents["tokens"].dtype == torch.uint16 and contents["tokens"].data_ptr() % 64 == 0
        ids += contents["tokens"].tolist()
        torch.save(contents, chunk)  # as versions before wrote them
    assert ids == toki.encode(sample_text(100_000))
    (tmp_path / "out" / "t.h5").unlink()
    assert run(tmp_path, toki).read_bytes() == wanted


class InLines(TextSource):
    """Every line of a text is a document, but for those of texts named plain."""

    def __init__(self, path: Path, *reading):
        super().__init__(path, *reading)
        self.has_documents = "plain" not in path.name

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        before = self.read(max(0, start - 1), stop - 1)
        found = [max(0, start - 1) + match.end() for match in re.finditer(b"\n", before)]
        return np.array(([0] if start == 0 else []) + found, dtype=np.uint64)


def documents_in(h5_path: Path) -> list[int] | None:
    found = open_tokens(h5_path).documents
    return None if found is None else found.tolist()


def test_documents_are_kept_through_chunks_threads_and_interruptions(tmp_path, toki, monkeypatch):
    monkeypatch.setattr(job_module, "TextSource", InLines)
    lines = [f"line {i} says é and {'x' * (i * 37 % 900)}!\n" for i in range(600)]
    plain = "one\ntwo"
    write(tmp_path / "t" / "a.txt", "".join(lines))
    write(tmp_path / "t" / "b_plain.txt", plain)
    write(tmp_path / "t" / "c.txt", lines[0])
    h5_path = run(tmp_path / "t", toki)
    assert ids_in(h5_path) == [i for text in ("".join(lines), plain, lines[0]) for i in toki.encode(text)]
    # A line's break joins no letter, so the lines encode alone as in the whole.
    lengths = [len(toki.encode(text)) for text in [*lines, plain]]
    assert documents_in(h5_path) == np.cumsum([0, *lengths]).tolist()
    content, chunks_folder = h5_path.read_bytes(), tmp_path / "t" / "t_tokens"
    chunk = torch.load(chunks_folder / "chunk_000001.pt", weights_only=True)
    assert chunk["documents"].dtype == torch.uint64 and 5 < len(chunk["documents"]) < len(lines)
    for change in (
        lambda: shutil.rmtree(chunks_folder),
        lambda: (chunks_folder / "chunk_000001.pt").unlink(),
        lambda: torch.save(chunk | {"documents": chunk["documents"][1:]}, chunks_folder / "chunk_000001.pt"),
    ):
        change()
        with pytest.raises(UserError, match="missing|damaged|run tokenize_folder first"):
            make_h5(chunks_folder, tmp_path / "t" / "out", toki)
        (chunks_folder / "chunk_000001.pt").unlink(missing_ok=True)
        assert run(tmp_path / "t", toki, num_workers=3).read_bytes() == content


def test_without_documents_there_is_no_such_dataset(tmp_path, toki):
    write(tmp_path / "t.txt", sample_text(10_000))
    assert documents_in(run(tmp_path, toki)) is None


@pytest.mark.parametrize("wrong", [[1, 2], [0, 5, 5], [0, 7, 3], [0, 10**9], []])
def test_documents_that_cannot_be_are_refused(tmp_path, toki, wrong):
    write(tmp_path / "t.txt", sample_text(10_000))
    h5_path = run(tmp_path, toki)
    with h5py.File(h5_path, "r+") as file:
        file["documents"] = np.array(wrong, dtype=np.uint64)
    with pytest.raises(UserError, match=r"t\.h5: (expected 'documents' to be ascending|holds no documents)"):
        open_tokens(h5_path)


def test_a_text_is_forecast_after_two_seconds(tmp_path, toki, monkeypatch, capfd):
    monkeypatch.setattr(progress, "FORECAST_S", 0.0)
    write(tmp_path / "t.txt", sample_text(500_000))
    run(tmp_path, toki)
    assert re.search(r"t: \d+ kB of text, [\d.]+ .?B a second: about \d+ s more", capfd.readouterr().err)


# Resuming


def test_a_finished_job_is_not_done_again(tmp_path, toki, monkeypatch):
    write(tmp_path / "t.txt", sample_text(200_000))
    first = run(tmp_path, toki).read_bytes()
    monkeypatch.setattr(chunks, "_encode", None)
    assert run(tmp_path, toki).read_bytes() == first


def test_missing_and_damaged_chunks_are_refused_and_made_again(tmp_path, toki):
    write(tmp_path / "t.txt", sample_text(200_000))
    wanted = run(tmp_path, toki).read_bytes()
    (tmp_path / "out" / "t.h5").unlink()
    chunk = tmp_path / "t_tokens" / "chunk_000002.pt"
    whole = chunk.read_bytes()
    position = whole.index(torch.load(chunk, weights_only=True)["tokens"].numpy().tobytes()[:64])
    for damage in (
        None,
        b"",
        whole[: len(whole) // 2],
        whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
        (tmp_path / "t_tokens" / "chunk_000001.pt").read_bytes(),
    ):
        chunk.unlink() if damage is None else chunk.write_bytes(damage)
        with pytest.raises(UserError, match="chunk_000002.pt is (missing|damaged)"):
            make_h5(tmp_path, tmp_path / "out", toki)
        assert not list((tmp_path / "out").iterdir())
        chunk.unlink(missing_ok=True)
        assert run(tmp_path, toki).read_bytes() == wanted
        (tmp_path / "out" / "t.h5").unlink()


def test_a_chunk_cut_off_before_the_end_is_made_again(tmp_path, toki):
    """By a disk that lost what it had confirmed, say."""
    write(tmp_path / "t.txt", sample_text(200_000))
    wanted = run(tmp_path, toki).read_bytes()
    (tmp_path / "t_tokens" / "chunk_000003.pt").unlink()
    first = tmp_path / "t_tokens" / "chunk_000000.pt"
    first.write_bytes(first.read_bytes()[:5000])
    assert run(tmp_path, toki).read_bytes() == wanted


def test_a_changed_text_is_refused(tmp_path, toki):
    text = sample_text(3_000_000)
    path = write(tmp_path / "t.txt", text)
    wanted = run(tmp_path, toki, chunk_bytes=500_000).read_bytes()
    data = text.encode("utf-8")
    times = path.stat()
    for changed in (data + b"more", data[:-1], b"X" + data[1:]):
        path.write_bytes(changed)
        with pytest.raises(UserError, match="another text, or of this text before it was changed"):
            run(tmp_path, toki, chunk_bytes=500_000)
    # A letter in the middle that no sample of the fingerprint sees: the checksums of the chunks do.
    at = next(
        i
        for i in range(len(data) // 2, len(data))
        if all(abs(i - (len(data) - 65536) * k // 31 - 32768) > 33000 for k in range(32))
    )
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for _ in range(2):
        with pytest.raises(UserError, match=r"t\.txt has changed since .*chunk_"):
            run(tmp_path, toki, chunk_bytes=500_000)
    # Put back, with another time, it goes on; and remembers the new time.
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert run(tmp_path, toki, chunk_bytes=500_000).read_bytes() == wanted
    assert job_module.read_manifest(tmp_path / "t_tokens").mtime_ns == [times.st_mtime_ns + 10**9]


def test_another_tokenizer_is_refused(tmp_path, toki):
    write(tmp_path / "t.txt", sample_text(100_000))
    run(tmp_path, toki)
    other = trained(tmp_path / "other", [sample_text(50_000, 3)], 700)
    with pytest.raises(UserError, match="another tokenizer"):
        run(tmp_path, other)
    with pytest.raises(UserError, match="another tokenizer"):
        make_h5(tmp_path, tmp_path / "out", other)
    with pytest.raises(UserError, match="bytes of text each"):
        run(tmp_path, toki, chunk_bytes=CHUNK + 1)


def test_what_make_h5_refuses(tmp_path, toki):
    with pytest.raises(UserError, match="run tokenize_folder first"):
        make_h5(tmp_path, tmp_path / "out", toki)
    write(tmp_path / "t.txt", sample_text(100_000))
    job = job_module.Job(tmp_path / "t_tokens", [tmp_path / "t.txt"], toki, "strict", CHUNK)
    job.begin()
    with pytest.raises(UserError, match="has not finished"):
        make_h5(tmp_path, tmp_path / "out", toki)
    (tmp_path / "t_tokens" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        make_h5(tmp_path, tmp_path / "out", toki)
    assert not (tmp_path / "out").exists()


def test_a_text_that_changes_meanwhile_is_not_finished(tmp_path, toki):
    path = write(tmp_path / "t.txt", sample_text(100_000))
    job = job_module.Job(tmp_path / "t_tokens", [path], toki, "strict", CHUNK)
    job.begin()
    os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match="has changed while it was tokenized"):
        job.finish([])


# Texts that are no UTF-8


def test_the_byte_that_is_not_utf8_is_named(tmp_path, toki):
    data = bytearray(sample_text(400_000).encode("utf-8"))
    at = data.index(b"The cat", 333_333)
    data[at] = 0xFF
    later = data.index(b"The cat", 400_000)
    data[later] = 0xFE
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"t.txt: not UTF-8 at byte {at} \(0xff\).*--errors replace"):
        tokenize_folder(tmp_path, toki.folder, num_workers=3, chunk_bytes=CHUNK)
    with pytest.raises(UserError, match=f"not UTF-8 at byte {at} "):
        create_tokenizer(tmp_path / "t.txt", tmp_path, tokenizer_name="none")
    assert not (tmp_path / "none").exists()
    # The chunks before that byte serve the run that replaces it.
    kept = (tmp_path / "t_tokens" / "chunk_000000.pt").stat().st_ino
    h5_path = run(tmp_path, toki, errors="replace")
    assert (tmp_path / "t_tokens" / "chunk_000000.pt").stat().st_ino == kept
    text = data.decode("utf-8", "replace")
    assert ids_in(h5_path) == toki.encode(text)
    with h5py.File(h5_path) as file:
        assert file["tokens"].attrs["text_bytes"] == len(text.encode("utf-8"))
    with pytest.raises(UserError, match="errors=replace"):
        run(tmp_path, toki)


def test_empty_texts_and_no_workers(tmp_path, toki):
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="the text is empty"):
        run(tmp_path, toki)
    with pytest.raises(UserError, match="num_workers: expected 1"):
        run(tmp_path, toki, num_workers=0)


def test_a_text_torn_at_its_end_is_not_utf8(tmp_path, toki):
    (tmp_path / "t.txt").write_bytes("abc é".encode()[:-1])
    with pytest.raises(UserError, match="byte 4 "):
        run(tmp_path, toki)


# Long runs


def test_a_run_beyond_the_limit_is_cut_with_a_warning(tmp_path, toki, capfd):
    text = "before " + "x" * 2_500_000 + " after"
    write(tmp_path / "t.txt", text)
    h5_path = run(tmp_path, toki, chunk_bytes=1_200_000)
    assert (
        1 <= len(re.findall("warning: .*cut at byte [0-9]+; the ids around it may differ", capfd.readouterr().err)) <= 2
    )
    assert toki.backend.decode(ids_in(h5_path)) == text


@pytest.mark.parametrize("character", ["x", "\n"])
def test_a_run_of_a_megabyte_is_not_cut(tmp_path, toki, character, capfd):
    text = "before " + character * ((1 << 20) // len(character.encode())) + "! after"
    write(tmp_path / "t.txt", text)
    assert ids_in(run(tmp_path, toki, chunk_bytes=600_000)) == toki.encode(text)
    assert "warning" not in capfd.readouterr().err


# Disks


def test_room_is_said_and_checked_before_the_work(tmp_path, toki, monkeypatch, capfd):
    write(tmp_path / "t.txt", sample_text(1_000_000))
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"t_tokens: \d{3} kB are needed and 100 kB are left"):
        tokenize_folder(tmp_path, toki.folder, num_workers=1)
    assert not (tmp_path / "t_tokens").exists()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=1_200_000))
    with pytest.raises(UserError, match=r"1\.\d* MB are needed"):
        tokenize_folder(tmp_path, toki.folder, num_workers=1, out_h5_folder=tmp_path / "out")
    chunks_folder = tokenize_folder(tmp_path, toki.folder, num_workers=1)
    said = float(capfd.readouterr().err.rsplit("room needed, about: ", 1)[1].split(" kB")[0]) * 1e3
    took = sum(path.stat().st_size for path in chunks_folder.iterdir())
    assert took < said < 1.3 * took
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(UserError, match="are needed"):
        make_h5(tmp_path, tmp_path / "out", toki)


def test_a_full_disk_ends_with_one_line_and_goes_on_later(tmp_path, toki):
    """A limit on the size of files stands in for the disk: the first to exceed it is a chunk, then the .h5."""
    write(tmp_path / "t.txt", sample_text(300_000))
    wanted = run(write(tmp_path / "same" / "t.txt", sample_text(300_000)).parent, toki).read_bytes()
    script = write(
        tmp_path / "script.py",
        f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from modules.system.errors import one_line_errors
from modules.tok_utils import make_h5, tokenize_folder
from modules.tokenizer import get_tokenizer
@one_line_errors
def main(limit):
    import torch
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    folder = tokenize_folder({str(tmp_path)!r}, {str(toki.folder)!r}, num_workers=2, chunk_bytes={CHUNK})
    make_h5(folder, {str(tmp_path / "out")!r}, get_tokenizer({str(toki.folder)!r}))
main(int(sys.argv[1]))
""",
    )
    chunk_bytes = (tmp_path / "same" / "t_tokens" / "chunk_000000.pt").stat().st_size
    for limit, message in (
        (chunk_bytes // 2, "chunk_000000.pt cannot be written"),
        (3 * chunk_bytes, "t.h5 cannot be written"),
    ):
        done = subprocess.run([sys.executable, script, str(limit)], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ") and message in last and "start again" in last, done.stderr
        assert not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("t_tokens/.*"))
    assert len(list(tmp_path.glob("t_tokens/chunk_*.pt"))) > 5
    assert run(tmp_path, toki).read_bytes() == wanted


def test_a_failure_without_a_number_is_one_line_too(tmp_path, toki, monkeypatch):
    def replacing(path):
        raise OSError("the store said no")

    write(tmp_path / "t.txt", sample_text(10_000))
    monkeypatch.setattr(job_module, "replacing", replacing)
    monkeypatch.setattr(job_module.Job, "begin", lambda self: None)
    with pytest.raises(UserError, match="chunk_000000.pt cannot be written: the store said no. What is done is kept"):
        run(tmp_path, toki)


def test_an_unwritable_folder_is_one_line(tmp_path, toki):
    write(tmp_path / "t.txt", sample_text(10_000))
    write(tmp_path / "t_tokens", "a file where the folder should be")
    with pytest.raises((UserError, OSError), match="t_tokens"):
        run(tmp_path, toki)
    with pytest.raises((UserError, OSError), match="t.txt"):
        create_tokenizer(tmp_path / "t.txt", tmp_path / "t.txt", tokenizer_name="x", vocab_size=300)


# The script


def script(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tokenize_to_h5.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_the_script_end_to_end_and_again(tmp_path):
    text = sample_text(200_000)
    write(tmp_path / "data" / "prose.txt", text)
    write(tmp_path / "data" / "other.txt", "not to be taken")
    arguments = (
        "--txt_path",
        "data/prose.txt",
        "--out_h5_folder",
        "out",
        "--tokenizer_folder",
        "tok",
        "--tokenizer_name",
        "mine",
        "--vocab_size",
        "800",
    )
    first = script(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    toki = get_tokenizer(tmp_path / "tok" / "mine")
    ids = toki.encode(text)
    assert ids_in(tmp_path / "out" / "prose.h5") == ids
    for said in (
        f"{len(text.encode()):,} bytes",
        f"{len(ids):,} (",
        f"{len(text.encode()) / len(ids):.2f} bytes a token",
        f"{len(set(ids)):,} of {toki.vocab_size:,} ids used",
        repr(toki.backend.decode(ids[len(ids) // 2 - 30 : len(ids) // 2 + 30])),
    ):
        assert said in first.stdout
    content = (tmp_path / "out" / "prose.h5").read_bytes()
    again = script(tmp_path, *arguments)
    assert (
        again.returncode == 0 and "using the tokenizer that is there" in again.stderr and again.stdout == first.stdout
    )
    assert (tmp_path / "out" / "prose.h5").read_bytes() == content


def test_the_script_says_what_to_edit_and_what_is_missing(tmp_path):
    done = script(tmp_path)
    assert done.returncode == 1 and done.stderr == (
        "error: txt_path is empty: edit the four names at the end of tokenize_to_h5.py, or give --txt_path\n"
    )
    rest = ("--out_h5_folder", "out", "--tokenizer_folder", "tok", "--tokenizer_name", "mine")
    done = script(tmp_path, "--txt_path", "nothing.txt", *rest)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: nothing.txt: no such text")
        and done.stderr.count("\n") == 1
    )
    write(tmp_path / "empty.txt", "")
    done = script(tmp_path, "--txt_path", "empty.txt", *rest)
    assert done.returncode == 1 and done.stderr == "error: empty.txt: the text is empty\n"
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_the_script_keeps_the_four_names_to_edit():
    code = (ROOT / "tokenize_to_h5.py").read_text()
    block = code[code.index("if __name__==") :] if "if __name__==" in code else code[code.index("if __name__ ==") :]
    for name in ("txt_path", "out_h5_folder", "tokenizer_folder", "tokenizer_name"):
        assert f'    {name} = ""  # ' in block
