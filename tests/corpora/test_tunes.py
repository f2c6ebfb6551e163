"""Melodies in ABC notation, from folders and from wheels, by the real script."""

import io
import json
import zipfile

import pytest

from modules.corpora.tunes import tunes
from tests.toy import run_script

REEL = "abde fgab|\\\nedcB\nA:|"
BOOK = f"""% a collection
Written down by hand.

X:1
T:A reel
K:D
"G"{REEL.replace("|", '|"_slowly"', 1)}  % said of it

X: 2
T: The same reel
K: D
{REEL}

X:3
T:A jig
K:G
G2g gdB|
K:D
[M:3/4] A2a afd:|

X:4
T:Nothing of it is known
K:C
"""


def collected(folder, *sources):
    out = folder / "tunes.jsonl"
    done = run_script("collect_tunes.py", *sources, out)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_tune_is_its_notes_and_bars_as_they_stand():
    assert tunes(BOOK) == [REEL, REEL, "G2g gdB|\n[M:3/4] A2a afd:|", ""]
    assert tunes(BOOK.replace("\n", "\r\n")) == tunes(BOOK)
    assert tunes("no tunes here") == []


@pytest.mark.parametrize("packed", [False, True])
def test_tunes_are_documents_from_folders_and_from_wheels(tmp_path, packed):
    held = {"music/airs/book.abc": BOOK, "music/airs/licence.txt": "as you like", "LICENSE": "of all", "x/COPYING": "x"}
    source = tmp_path / ("it's [a] wheel.whl" if packed else "it's [a] folder")
    if packed:
        with zipfile.ZipFile(source, "w") as archive:
            for name, text in held.items():
                archive.writestr(name, text)
    else:
        for name, text in held.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
    told, documents = collected(tmp_path, source)
    assert "in 2 documents; left out: 1 repeated paragraphs" in told
    assert {each["text"] for each in documents} == set(tunes(BOOK)[1:3])
    assert {each["name"] for each in documents} <= {f"music/airs/book.abc/{number}" for number in (1, 2, 3)}
    (about,) = json.loads((tmp_path / "tunes.source.json").read_text())["sources"]
    assert about == {"package": source.name, "licence": "see LICENSE, music/airs/licence.txt in it"}


def damaged_wheel() -> bytes:
    with zipfile.ZipFile(whole := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("book.abc", BOOK * 20)
    content = bytearray(whole.getvalue())
    content[60:80] = bytes(20)
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 and no more", damaged_wheel()])
def test_what_is_no_collection_is_refused(tmp_path, content):
    (tmp_path / "x.whl").write_bytes(content)
    done = run_script("collect_tunes.py", tmp_path / "x.whl", tmp_path / "tunes.jsonl")
    assert done.returncode == 1 and "expected a folder, a zip file or a wheel with .abc files" in done.stderr
    (tmp_path / "empty").mkdir()
    done = run_script("collect_tunes.py", tmp_path / "empty", tmp_path / "tunes.jsonl")
    assert done.returncode == 1 and "no tunes in" in done.stderr and not (tmp_path / "tunes.jsonl").exists()
