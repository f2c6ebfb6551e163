"""Files that the tokenization reads, damaged at random: one line that names the file, or the result as if nothing had
been; never a traceback."""

import json
import random
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from modules.data.token_file import open_tokens
from modules.system.errors import UserError
from modules.tok_utils import job as job_module
from modules.tok_utils import make_h5, tokenize_folder
from modules.tokenizer import get_tokenizer
from tests.tok_texts import sample_text, trained

MUTATIONS = 40
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0" * 64,
    "\x00",
    [],
    {},
    [[]],
    {"a": 1},
    [None] * 3,
    ["a", "b", "c"],
]


def places(value, path=()):
    """The paths to all entries of nested lists and dictionaries."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def mutated(value, rng: random.Random):
    """A copy with one entry replaced, removed, doubled, renamed or changed a little; entries near the top as likely as
    the many deep ones."""
    value = (
        json.loads(json.dumps(value))
        if not any(isinstance(entry, torch.Tensor) for entry in getattr(value, "values", list)())
        else dict(value)
    )
    by_depth = {}
    for path in places(value):
        by_depth.setdefault(len(path), []).append(path)
    *above, key = rng.choice(by_depth[rng.choice(list(by_depth))])
    inside = value
    for step in above:
        inside = inside[step]
    what = rng.choice(["replace", "replace", "remove", "double", "rename", "nudge"])
    if what == "remove" or what in ("double", "rename") and isinstance(inside, dict):
        entry = inside.pop(key)
        if what != "remove":
            inside[f"{key}2"] = entry
        if what == "double":
            inside[key] = entry
    elif what == "double":
        inside.insert(key, inside[key])
    elif what == "nudge" and isinstance(inside[key], int):
        inside[key] += rng.choice([-1, 1])
    elif what == "nudge" and isinstance(inside[key], str) and inside[key]:
        at = rng.randrange(len(inside[key]))
        inside[key] = inside[key][:at] + chr(ord(inside[key][at]) ^ 1) + inside[key][at + 1 :]
    else:
        inside[key] = rng.choice(VALUES)
    return value


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one bit flipped, a stretch zeroed, or an end cut off."""
    at = rng.randrange(len(data))
    one_bit = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return rng.choice([one_bit, data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :], data[:at]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tokenized text with all its files."""
    folder = tmp_path_factory.mktemp("whole")
    trained(folder / "tok", [sample_text(20_000)], 400)
    (folder / "tok" / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|endoftext|>"})
    )
    (folder / "t.txt").write_text(sample_text(20_000), encoding="utf-8")
    tokenize_folder(folder / "t.txt", folder / "tok", num_workers=1, chunk_bytes=9_000)
    return folder, make_h5(folder, folder, get_tokenizer(folder / "tok")).read_bytes()


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, to be damaged, and what the .h5 should be."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy", whole[1]


def outcome(folder: Path, work, *names: str) -> str | None:
    """The line that `work` was refused with, which is one and names one of the files; None where it was not."""
    try:
        work()
        return None
    except UserError as error:
        assert "\n" not in str(error) and any(name in str(error) for name in names), str(error)
        return re.sub(r"^\S+", "...", str(error))


def to_h5(folder: Path) -> bytes:
    """The whole way again, the chunks that are there used."""
    (folder / "t.h5").unlink(missing_ok=True)
    toki = get_tokenizer(folder / "tok")
    return make_h5(
        tokenize_folder(folder / "t.txt", folder / "tok", num_workers=1, chunk_bytes=9_000), folder, toki
    ).read_bytes()


@pytest.mark.parametrize("damage", ["content", "bytes"])
@pytest.mark.parametrize("name", ["t_tokens/manifest.json", "tok/tokenizer.json", "tok/tokenizer_config.json"])
def test_damaged_json(copy, name, damage):
    folder, wanted = copy
    original = (folder / name).read_bytes()
    refused, rng = 0, random.Random(f"{name} {damage}")
    for _ in range(MUTATIONS):
        (folder / name).write_bytes(
            json.dumps(mutated(json.loads(original), rng)).encode() if damage == "content" else flipped(original, rng)
        )
        # The .h5 is made of the chunks that are there.
        (folder / "t.h5").unlink(missing_ok=True)
        line = outcome(
            folder, lambda: make_h5(folder, folder, get_tokenizer(folder / "tok")), "manifest.json", "tok", "t_tokens"
        )
        refused += line is not None
        if line is None:
            assert (folder / "t.h5").read_bytes() == wanted
    assert refused > MUTATIONS // 4
    (folder / name).write_bytes(original)
    assert to_h5(folder) == wanted


@pytest.mark.parametrize("damage", ["content", "bytes"])
def test_damaged_chunks(copy, damage):
    folder, wanted = copy
    path = folder / "t_tokens" / "chunk_000001.pt"
    original, rng = path.read_bytes(), random.Random(damage)
    contents = torch.load(path, weights_only=True)
    toki, refused = get_tokenizer(folder / "tok"), 0
    for number in range(MUTATIONS):
        if damage == "content":
            changed = mutated(contents, rng)
            if number % 4 == 0:
                ids = contents["tokens"]
                changed["tokens"] = [
                    ids[:-1],
                    ids.to(torch.int64),
                    ids.view(1, -1),
                    torch.from_numpy(ids.numpy()[::-1].copy()),
                    ids.float(),
                ][number // 4 % 5]
            torch.save(changed, path)
        else:
            path.write_bytes(flipped(original, rng))
        (folder / "t.h5").unlink(missing_ok=True)
        line = outcome(folder, lambda: make_h5(folder, folder, toki), "chunk_000001.pt")
        refused += line is not None
        if line is None:
            assert (folder / "t.h5").read_bytes() == wanted
        if line is not None and number % 8 == 0:  # what make_h5 advises helps
            path.unlink()
            assert to_h5(folder) == wanted
    assert refused > MUTATIONS // 2


def test_damaged_chunks_of_an_unfinished_job_are_made_again(copy):
    """Without the manifest's list of chunks, what a chunk says of itself is all there is."""
    folder, wanted = copy
    manifest, path = folder / "t_tokens" / "manifest.json", folder / "t_tokens" / "chunk_000001.pt"
    contents, rng = torch.load(path, weights_only=True), random.Random(0)
    for _ in range(MUTATIONS // 4):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"chunks": None}))
        torch.save(mutated(contents, rng), path)
        if (line := outcome(folder, lambda: to_h5(folder), "chunk_000001.pt")) is None:
            assert (folder / "t.h5").read_bytes() == wanted
        else:
            assert "damaged" in line or "has changed" in line
            path.unlink()


@pytest.mark.parametrize("where", ["header", "anywhere"])
def test_damaged_h5(copy, where):
    folder, wanted = copy
    path, rng, refused = folder / "t.h5", random.Random(where), 0
    good = open_tokens(path)
    ids, said = np.array(good.tokens), (good.vocab_size, good.bos_id, good.text_bytes, good.tokenizer_fingerprint)
    with h5py.File(path) as file:
        offset = file["tokens"].id.get_offset()
    for _ in range(5 * MUTATIONS if where == "header" else MUTATIONS):
        path.write_bytes(
            flipped(wanted[:offset], rng).ljust(offset, b"\0") + wanted[offset:]
            if where == "header"
            else flipped(wanted, rng)
        )

        def work():
            found = open_tokens(path)
            found.check_ids(400)
            assert (
                np.array_equal(found.tokens[:], ids)
                and (found.vocab_size, found.bos_id, found.text_bytes, found.tokenizer_fingerprint) == said
            )

        refused += outcome(folder, work, "t.h5") is not None
    assert refused > 5


def test_chunks_that_do_not_meet_are_refused(copy):
    """As a tokenizer that cut elsewhere the second time would leave them."""
    folder, wanted = copy
    manifest = folder / "t_tokens" / "manifest.json"
    found = json.loads(manifest.read_text())
    toki, rows = get_tokenizer(folder / "tok"), found["chunks"]
    assert len(rows) == 3
    for changed in (
        rows[1:],
        rows[:-1],
        rows[:1] + rows[2:],
        rows[:1] + rows,
        [rows[0] | {"stop": rows[0]["stop"] - 1}, *rows[1:]],
        [*rows[:-1], rows[-1] | {"stop": rows[-1]["stop"] - 1}],
        [rows[1], rows[0], rows[2]],
        [*rows[:-1], rows[-1] | {"text": 1}],
        [],
    ):
        manifest.write_text(json.dumps(found | {"chunks": changed}))
        with pytest.raises(UserError, match=r"manifest.json is damaged: .*chunk"):
            make_h5(folder, folder, toki)
    assert (folder / "t.h5").read_bytes() == wanted


def test_a_chunk_of_another_stretch_of_the_text_is_made_again(copy):
    folder, wanted = copy
    manifest, path = folder / "t_tokens" / "manifest.json", folder / "t_tokens" / "chunk_000001.pt"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"chunks": None}))
    contents = torch.load(path, weights_only=True)
    torch.save(contents | {"start": contents["start"] - 1}, path)
    assert to_h5(folder) == wanted


def test_what_cannot_be_read_for_another_reason_is_not_called_so(copy, monkeypatch):
    folder, wanted = copy
    path, toki = folder / "t_tokens" / "chunk_000000.pt", get_tokenizer(folder / "tok")
    for problem, said in (
        (OSError(5, "Input/output error", str(path)), "Input/output error.*nothing is lost"),
        (MemoryError(), "no memory is left"),
    ):
        monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_, problem=problem, **__: (_ for _ in ()).throw(problem))
        with pytest.raises(UserError, match=said) as refused:
            make_h5(folder, folder, toki)
        assert (
            "damaged" not in str(refused.value)
            and "delete" not in str(refused.value)
            and str(path) in str(refused.value)
        )
    job = job_module.Job(folder / "t_tokens", [folder / "t.txt"], toki, "strict", 9_000)
    with pytest.raises(MemoryError):
        job.read(0)
    monkeypatch.undo()
    assert (folder / "t.h5").read_bytes() == wanted
