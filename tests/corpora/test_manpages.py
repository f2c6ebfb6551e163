"""Prose from manual pages: what is kept of their source, and that the text depends on the pages alone."""

import gzip
from pathlib import Path

import pytest

from modules.corpora import manpages
from modules.corpora.manpages import plain, prose_blocks, write_manpage_corpus
from modules.system.errors import UserError
from tests.toy import run_script

PAGE = r"""
.\" A comment that would read as a sentence, were it not one at all.
.TH LISTE 1
.SH NOM
liste \- afficher
.SH DESCRIPTION
Les entrées \fBtriées\fP, l\(aqune après l\(aqautre, se trouvent dans le
répertoire courant \(Foici\(Fc.
.PP
Voir aussi la page
.BR autre (1)
pour les détails, et
.I fichier
pour le reste.
.TP
\fB\-a\fP, Une Option Dont Le Nom Est Long Comme Une Phrase
Inclure aussi ce qui commence par un point, même caché.
.nf
Ceci est un exemple qui se lit comme une phrase entière.
.fi
.PP
et voilà une suite sans majuscule, qui ne commence donc rien.
"""
KEPT = [
    "Les entrées triées, l'une après l'autre, se trouvent dans le répertoire courant «ici».",
    "Voir aussi la page autre(1) pour les détails, et fichier pour le reste.",
    "Inclure aussi ce qui commence par un point, même caché.",
]


def write_pages(folder: Path) -> Path:
    for name, page in (
        ("fr/man1/liste.1.gz", PAGE),
        ("fr/man1/copie.1.gz", PAGE),
        ("man1/list.1.gz", "The entries are sorted, one after the other.\n"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(page.encode("utf-8")))
    return folder


def test_running_text_stays_and_the_rest_goes():
    assert prose_blocks(PAGE) == KEPT


@pytest.mark.parametrize(
    "source, text",
    [
        (r"\fBgras\fP et \f(CWfixe\fR", "gras et fixe"),
        (r"\-\-all\ ; \&.", "--all ; ."),
        (r"un\~deux \(dqtrois\(dq", 'un deux "trois"'),
        (r"texte \" note", "texte"),
        (r"\s-1PETIT\s0 \(lqmot\(rq", 'PETIT "mot"'),
    ],
)
def test_escapes(source, text):
    assert plain(source) == text


def test_a_paragraph_is_kept_once_and_each_language_by_itself(tmp_path):
    write_pages(tmp_path)
    write_manpage_corpus(tmp_path / "fr.txt", "fr", tmp_path)
    assert (tmp_path / "fr.txt").read_text(encoding="utf-8") == "\n".join(KEPT) + "\n\n"
    write_manpage_corpus(tmp_path / "en.txt", "en", tmp_path)
    assert (tmp_path / "en.txt").read_text(encoding="utf-8") == "The entries are sorted, one after the other.\n\n"


def test_the_script_and_what_it_refuses(tmp_path):
    write_pages(tmp_path)
    done = run_script("collect_manpages.py", "fr", tmp_path / "fr.txt", "--folder", tmp_path)
    assert done.returncode == 0 and "0.0 MB of prose" in done.stdout and (tmp_path / "fr.txt").stat().st_size > 100
    done = run_script("collect_manpages.py", "xx", tmp_path / "xx.txt", "--folder", tmp_path)
    assert done.returncode == 1 and "expected manual pages" in done.stderr and not (tmp_path / "xx.txt").exists()
    (tmp_path / "de" / "man1").mkdir(parents=True)
    (tmp_path / "de" / "man1" / "broken.1.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match="no prose in 1 manual pages"):
        write_manpage_corpus(tmp_path / "de.txt", "de", tmp_path)
    assert not (tmp_path / "de.txt").exists()


def test_of_a_page_that_unpacks_to_any_size_the_beginning_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(manpages, "LARGEST_PAGE", 1000)
    (tmp_path / "x.1.gz").write_bytes(gzip.compress(b"a" * 100_000))
    assert manpages.read_page(tmp_path / "x.1.gz") == "a" * 1000
