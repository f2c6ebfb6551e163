"""The corpus of docstrings: prose stays, everything else goes, and the same files always give the same text."""

import os
import subprocess
import sys

import pytest

from modules.corpora.docstrings import prose_blocks, write_docstring_corpus
from modules.system.errors import UserError

DOCUMENTED = '''"""The first sentence of the module, which is long enough.

    >>> print("A doctest that ends like a sentence does, with a stop.")

Parameters
----------
width : int
    How many columns the table has, counted from the left
    and including the margin.

| A table | with sentences. | Which it is not, of course, and so it goes. |
"""
raise RuntimeError("somebody imported this")

class Thing:
    """A thing that holds :class:`Other` things and ``None`` besides them."""
    if True:
        def method(self):
            "Return the thing that was put in last of all of them."
'''
PROSE = """The first sentence of the module, which is long enough.
How many columns the table has, counted from the left and including the margin.

A thing that holds Other things and None besides them.

Return the thing that was put in last of all of them.

"""


def test_prose_stays_and_the_rest_goes(tmp_path):
    (tmp_path / "code" / "tests").mkdir(parents=True)
    (tmp_path / "code" / "thing.py").write_text(DOCUMENTED)
    (tmp_path / "code" / "copy.py").write_text(DOCUMENTED)
    (tmp_path / "code" / "broken.py").write_text("def (:\n")
    (tmp_path / "code" / "null.py").write_bytes(b'"""Text that cannot be parsed because of a null.\0"""')
    (tmp_path / "code" / "tests" / "test_x.py").write_text('"""A test says things that nobody wants to learn from."""')
    out = tmp_path / "out" / "prose.txt"
    assert write_docstring_corpus(out, 1, [tmp_path / "code"]) == len(PROSE)
    assert out.read_text() == PROSE


def test_a_block_ends_where_the_indentation_changes():
    docstring = (
        "Summary of a function that does a lot of things.\nname : type\n"
        "    What it is for, in at least forty characters.\n"
    )
    assert prose_blocks(docstring) == ["What it is for, in at least forty characters."]


def test_the_text_depends_on_the_files_only(tmp_path):
    texts = []
    for run in range(2):
        folder = tmp_path / str(run)
        folder.mkdir()
        for number in range(40) if run else reversed(range(40)):
            (folder / f"f{number}.py").write_text(
                f'"""Module {number} says its number in a sentence and nothing else."""'
            )
        write_docstring_corpus(tmp_path / "prose.txt", 1, [folder])
        texts.append((tmp_path / "prose.txt").read_text())
    assert texts[0] == texts[1]
    assert texts[0].count("sentence") == 40
    assert write_docstring_corpus(tmp_path / "short.txt", 0.0005, [folder]) < 600
    assert texts[0].startswith((tmp_path / "short.txt").read_text())


def test_no_prose_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="no prose"):
        write_docstring_corpus(tmp_path / "prose.txt", 1, [tmp_path])
    assert not list(tmp_path.iterdir())


def test_the_script_on_the_real_packages(tmp_path):
    command = [sys.executable, "collect_docstrings.py", tmp_path / "prose.txt", "--max_mb", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0.2 MB of English prose" in done.stdout
    words = (tmp_path / "prose.txt").read_text(encoding="utf-8").lower().split()
    # The commonest English word; code and tables have next to none.
    assert 0.04 < words.count("the") / len(words) < 0.12


def test_a_pipe_among_the_files_is_not_waited_for(tmp_path):
    (tmp_path / "a.py").write_text('"""A module that says something in one whole sentence."""\n')
    os.mkfifo(tmp_path / "b.py")
    assert write_docstring_corpus(tmp_path / "out.txt", 1, [str(tmp_path)]) > 0
