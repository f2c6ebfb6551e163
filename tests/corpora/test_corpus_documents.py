"""Collected documents: what comes twice is left out, their order, and where they are from."""

import json
import random
import re

import pytest

from modules.corpora.documents import NEAR, Document, place, word_sequences, write_documents
from modules.system.errors import UserError
from tests.toy import run_script

WORDS = [f"word{number}" for number in range(5000)]


def sentences(seed: int, count: int = 300) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


def written(tmp_path, documents, name="x.jsonl", **kwargs):
    kept = write_documents(
        tmp_path / name, documents, kwargs.pop("max_mb", 10), [{"package": "p"}], "nothing", **kwargs
    )
    return kept, [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]


def test_repeated_paragraphs_and_near_duplicates_are_left_out_and_counted(tmp_path):
    one, other = sentences(1), sentences(2)
    near = one.split()
    near[10] = near[200] = "changed"  # in 10 of 296 sequences
    half = one.split()[:150] + sentences(3, 150).split()  # a third of the sequences are the same: no near-duplicate
    documents = [
        Document("p/a", [one, "A paragraph that every document has."]),
        Document("p/b", [" ".join(near)]),
        Document("p/c", [other, "A paragraph that every document has."]),
        Document("p/d", [" ".join(half)]),
        Document("p/e", []),
    ]
    kept, found = written(tmp_path, documents)
    assert (kept.documents, kept.near_duplicates, kept.repeated_paragraphs, kept.empty) == (3, 1, 1, 1)
    text = "\n".join(document["text"] for document in found)
    assert text.count("A paragraph that every") == 1 and other in text and " ".join(half) in text
    assert (one in text) != (" ".join(near) in text)
    about = json.loads((tmp_path / "x.source.json").read_text())
    assert (
        about["documents"] == 3
        and about["sources"] == [{"package": "p"}]
        and str(NEAR) in about["how_duplicates_were_found"]
    )
    assert kept.size == len("".join(document["text"] for document in found).encode())


def test_estimates_agree_with_the_true_similarity(tmp_path):
    """Pairs well on either side of the threshold, by the sets themselves."""
    for seed, changed, near in [
        (seed, changed, near) for seed in range(20) for changed, near in ((5, True), (60, False))
    ]:
        text = sentences(seed)
        words, draw = text.split(), random.Random(seed)
        for place_ in draw.sample(range(300), changed):
            words[place_] = "other"
        one, other = word_sequences(text), word_sequences(" ".join(words))
        assert (len(one & other) / len(one | other) > NEAR) == near
        kept, _ = written(tmp_path, [Document("a/1", [text]), Document("a/2", [" ".join(words)])])
        assert (kept.near_duplicates == 1) == near, seed


def test_the_same_pages_come_in_the_same_order_in_all_languages(tmp_path):
    pages = [f"guide/{number}.html" for number in range(50)]
    orders = []
    for language in ("fr", "de"):
        documents = [
            Document(f"help-{language}/help/{language}/{page}", [sentences(100 * ord(language[0]) + pages.index(page))])
            for page in pages
        ]
        _, found = written(tmp_path, documents)
        orders.append([re.sub(".*/guide", "guide", document["name"]) for document in found])
    assert orders[0] == orders[1] != sorted(pages) and sorted(orders[0]) == sorted(pages)
    assert [document.name for document in sorted(map(lambda name: Document(name, []), "ba"), key=place)] in (
        ["a", "b"],
        ["b", "a"],
    )


def test_what_a_translation_left_in_english_can_be_left_out(tmp_path):
    english = "This sentence was never translated."
    written(tmp_path, [Document("en/a", [english, "This one was."])], "en.jsonl")
    _, found = written(tmp_path, [Document("fr/a", [english, "Celle-ci l'a été."])], without=tmp_path / "en.jsonl")
    assert [document["text"] for document in found] == ["Celle-ci l'a été."]
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match="found no document in line 1"):
        written(tmp_path, [Document("a", ["x"])], "y.jsonl", without=tmp_path / "bad.jsonl")


def test_it_ends_at_the_size_that_was_asked_for(tmp_path):
    documents = [Document(f"p/{number}", [sentences(number)]) for number in range(30)]
    kept, found = written(tmp_path, documents, max_mb=0.01)
    assert 0.01e6 <= kept.size < 0.013e6 and len(found) == kept.documents < 10


def test_what_is_refused_leaves_what_was_there(tmp_path):
    with pytest.raises(UserError, match="ends in .jsonl"):
        written(tmp_path, [Document("a", ["x"])], "x.txt")
    (tmp_path / "x.jsonl").write_text("before")
    with pytest.raises(UserError, match="nothing"):
        written(tmp_path, [Document("a", [])])
    assert (tmp_path / "x.jsonl").read_text() == "before"


def test_source_code_is_collected_a_file_a_document(tmp_path):
    code = "import os\n\n\ndef f():\n    # A comment stays.\n    return os.getcwd()\n"
    for name, text in {"a.py": code, "sub/copy.py": code, "b.txt": "no code", "site-packages/c.py": "x = 1"}.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(text)
    (tmp_path / "lib" / "binary.py").write_bytes(b"\xff\xfe")
    done = run_script("collect_code.py", tmp_path / "code.jsonl", "--folder", tmp_path / "lib")
    assert done.returncode == 0 and "1 documents" in done.stdout, done.stderr
    (document,) = [json.loads(line) for line in (tmp_path / "code.jsonl").read_text().splitlines()]
    assert document["text"] == code.strip() and document["name"] in ("lib/a.py", "lib/sub/copy.py")
    done = run_script("collect_code.py", tmp_path / "none.jsonl", "--folder", tmp_path / "lib", "--pattern", "*.rs")
    assert (
        done.returncode == 1 and "expected files called *.rs" in done.stderr and not (tmp_path / "none.jsonl").exists()
    )
