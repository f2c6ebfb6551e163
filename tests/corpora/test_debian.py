"""Prose from Debian packages: what is kept of real `.deb` files, which never reach beyond themselves."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from modules.corpora import debian
from modules.corpora.debian import licence_of, write_debian_corpus
from modules.corpora.pages import html_blocks, text_blocks
from modules.system.errors import UserError
from tests.toy import run_script

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="makes real packages")
PAGE = """<!DOCTYPE html><html><head><title>This is a title, and it is not a part of the prose.</title>
<meta charset="utf-8"><style>p { color: This is no sentence of the page either. }</style></head><body>
<nav><p>Everything that stands in the navigation is left out, links and all.</p></nav>
<h1>A Heading Without A Full Stop</h1>
<p>Les entrées sont <b>tri&eacute;es</b>, l&#39;une après l'autre, dans le <a href="x">répertoire</a> courant.
<p>A paragraph that nobody closed,<br>with a line break in it, ends at the next one.
<pre>This is an example of code, which reads like a sentence here.</pre>
<ul><li>An item of a list is a block of its own, of course.<li><p>So is a paragraph in an item, which comes once.</ul>
<span hidden="true">What is hidden, <span>with all that stands in it,</span> nobody is meant to read.</span>
<table><tr><td>A cell of a table can have a whole sentence, too.</td><td>12</td></tr></table>
<script>if (a < b) { alert("This is a sentence, though nobody would read it."); }</script>
</body></html>"""
KEPT = [
    "Les entrées sont triées, l'une après l'autre, dans le répertoire courant.",
    "A paragraph that nobody closed, with a line break in it, ends at the next one.",
    "An item of a list is a block of its own, of course.",
    "So is a paragraph in an item, which comes once.",
    "A cell of a table can have a whole sentence, too.",
]
TEXT = """A TITLE

This is the first paragraph of a plain text,
and it goes on in the next line.

    This paragraph is indented, as code and quotations are.

Here is another paragraph, which ends well.
"""


def unpacked_package(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def package(folder: Path, files: dict[str, bytes], name: str = "toy-doc", links: dict[str, str] | None = None) -> Path:
    """A real `.deb`."""
    control = f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: toy\n"
    control += "Homepage: https://toy.example\n"
    root = unpacked_package(folder / "root", files | {"DEBIAN/control": control.encode()})
    for link, target in (links or {}).items():
        os.symlink(target, root / link)
    deb = folder / f"{name}_1.2-3_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, deb], check=True, capture_output=True)
    return deb


def texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_of_a_page_its_sentences_stay():
    assert html_blocks(PAGE.encode()) == KEPT


def test_a_page_in_the_encoding_that_it_declares():
    page = "<meta charset=iso-8859-1><p>Les élèves étaient tous là, près de la fenêtre.</p>"
    assert html_blocks(page.encode("latin-1")) == ["Les élèves étaient tous là, près de la fenêtre."]
    assert html_blocks(page.replace("iso-8859-1", "no-such-one").encode()) == [page.partition("<p>")[2][:-4]]


def test_of_a_plain_text_its_paragraphs_stay():
    assert text_blocks(TEXT) == [
        "This is the first paragraph of a plain text, and it goes on in the next line.",
        "Here is another paragraph, which ends well.",
    ]


@pytest.mark.parametrize(
    "file, licence",
    [
        ("Format: x\nLicense: GPL-2+\n text\nLicense: MIT\nLicense: GPL-2+\n", "GPL-2+, MIT"),
        ("On Debian, see /usr/share/common-licenses/GFDL-1.3.", "GFDL-1.3"),
        ("Do what you want.", "see its copyright file"),
    ],
)
def test_licences(file, licence):
    assert licence_of(file) == licence


FILES = {
    "usr/share/doc/toy-doc/copyright": b"License: CC0-1.0\n",
    "usr/share/doc/toy-doc/page.html": PAGE.encode(),
    "usr/share/doc/toy-doc/old.html.gz": gzip.compress(b"<p>A page that is compressed has its sentences as well.</p>"),
    "usr/share/doc/toy-doc/source.txt": b"The same text in another form would come twice, were it taken.\n",
    "usr/share/doc/toy-doc/damaged.html.gz": gzip.compress(PAGE.encode())[:40],
}


@needs_dpkg
def test_a_package_becomes_a_text_with_its_source(tmp_path):
    secret = tmp_path / "secret.html"
    secret.write_text("<p>This sentence stands outside, where no package may reach.</p>")
    deb = package(tmp_path, FILES, links={"usr/share/doc/toy-doc/link.html": str(secret)})
    out = tmp_path / "out" / "toy.jsonl"
    done = run_script("collect_debian.py", deb, out)
    assert done.returncode == 0 and "2 documents; left out: 0 repeated paragraphs" in done.stdout, done.stderr
    found = {document["name"].rpartition("/")[2]: document["text"] for document in texts(out)}
    assert found == {
        "page.html": "\n".join(KEPT),
        "old.html.gz": "A page that is compressed has its sentences as well.",
    }
    about = json.loads((out.parent / "toy.source.json").read_text())
    (source,) = about["sources"]
    assert (about["documents"], about["empty"]) == (2, 1)
    assert (source["package"], source["version"], source["licence"]) == ("toy-doc", "1.2-3", "CC0-1.0")
    assert (source["form"], source["address"]) == ("html", "https://toy.example") and len(source["sha256"]) == 64
    # A folder with the package unpacked gives the same text.
    unpacked = tmp_path / "toy-doc"
    subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
    write_debian_corpus(tmp_path / "again.jsonl", [str(unpacked)])
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    # A package that was downloaded before is found by its name.
    (tmp_path / "debs").mkdir()
    shutil.copy(deb, tmp_path / "debs")
    write_debian_corpus(tmp_path / "named.jsonl", ["toy-doc"], tmp_path / "debs")
    assert (tmp_path / "named.jsonl").read_bytes() == out.read_bytes()


@needs_dpkg
def test_what_cannot_be_read_is_refused_in_a_line_and_nothing_is_written(tmp_path):
    deb = package(tmp_path, {"usr/bin/toy": b"binary"})
    broken = tmp_path / "broken.deb"
    broken.write_bytes(b"This is no package.")
    cut = tmp_path / "cut_1_all.deb"
    whole = package(tmp_path / "whole", {"usr/share/doc/x/page.html": os.urandom(50_000)})
    cut.write_bytes(whole.read_bytes()[:20_000])
    out = tmp_path / "out.jsonl"
    for name, expected in (
        (str(deb), "expected a package with HTML"),
        (str(broken), "expected a Debian package, found"),
        (str(cut), "expected a Debian package, found"),
        ("Not a name!", "expected the name of a Debian package"),
        (str(unpacked_package(tmp_path / "empty", {"x.html": b"<p>12</p>"})), "no prose in the 1 files"),
    ):
        with pytest.raises(UserError, match=expected):
            write_debian_corpus(out, [name])
    assert not list(tmp_path.glob("out*"))


def test_manual_pages_and_the_form_that_is_taken(tmp_path):
    page = ".SH NAME\nx \\- y\n.SH DESCRIPTION\nThe option \\*(C`all\\*(C' shows everything that there is.\n"
    files = {"usr/share/man/man1/x.1.gz": gzip.compress(page.encode()), "usr/share/doc/x/README": TEXT.encode()}
    write_debian_corpus(tmp_path / "x.jsonl", [str(unpacked_package(tmp_path / "x", files))])
    (document,) = texts(tmp_path / "x.jsonl")
    assert document == {"text": "The option all shows everything that there is.", "name": "x/usr/share/man/man1/x.1.gz"}


MALLARD = """<?xml version="1.0"?><page xmlns="http://projectmallard.org/1.0/"><info><desc>A task is described in this
sentence.</desc></info><title>Keys</title><p>Press <key>Enter</key> in the <gui>Settings</gui> window, and the file is
saved.</p><screen>This is the output of a command, not prose.</screen><media type="image"><p>A picture of a window with
a list.</p></media></page>"""
DOCBOOK = """<section xml:id="x"><info><title>Files</title></info>
<para>The <application>Caja</application> manager shows all that you have saved.</para>
<itemizedlist><listitem><para>Choose <menuchoice><guimenu>File</guimenu> <guimenuitem>Open</guimenuitem></menuchoice>
to look at what is in one.</para></listitem></itemizedlist></section>"""


def test_help_pages_of_one_language(tmp_path):
    shown = "Press Enter in the Settings window, and the file is saved."
    french = "Appuyez sur une touche du clavier pour continuer."
    files = {
        "usr/share/help/es/x/a.page": MALLARD.encode(),
        "usr/share/help/es/x/b.xml": DOCBOOK.encode(),
        "usr/share/help/fr/x/a.page": f"<p>{french}</p>".encode(),
        "usr/share/mime/y.xml": DOCBOOK.encode(),
    }
    folder = unpacked_package(tmp_path / "x=1", files)
    write_debian_corpus(tmp_path / "es.jsonl", [f"{folder}=*/es/*"])
    assert [document["text"] for document in texts(tmp_path / "es.jsonl")] == [
        shown,
        "The Caja manager shows all that you have saved.\nChoose File Open to look at what is in one.",
    ]
    (source,) = json.loads((tmp_path / "es.source.json").read_text())["sources"]
    assert (source["form"], source["files"]) == ("help pages", "*/es/*")
    write_debian_corpus(tmp_path / "all.jsonl", [str(folder)])
    assert french in (tmp_path / "all.jsonl").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"text under \*/el/\*, found none"):
        write_debian_corpus(tmp_path / "el.jsonl", [f"{folder}=*/el/*"])


GENESIS = [
    '<div osisID="Gen" type="book"/><title>Genesis</title>',
    '<chapter osisID="Gen.1"/>',
    '<w lemma="strong:H7225">In the beginning</w><w>God</w><note placement="foot">On this word.</note> created it.',
    'and <transChange type="added">it was</transChange> without form;',
    '<chapter osisID="Gen.2"/>',
    "Thus the heavens and the earth were finished.",
]


def sword_module(books: list[list[str]], damaged: int) -> dict[str, bytes]:
    """The files of a SWORD module with these verses."""
    data, of_books, of_verses = b"xx", b"", b""
    for number, verses in enumerate(books):
        whole = "".join(verses).encode()
        packed = b"damaged" if number == damaged else zlib.compress(whole) + b"pad"
        of_books += struct.pack("<III", len(data), len(packed), len(whole))
        data += packed
        for place, verse in enumerate(verses):
            of_verses += struct.pack("<IIH", number, len("".join(verses[:place]).encode()), len(verse.encode()))
    module = "usr/share/sword/modules/texts/ztext/toy/ot"
    return {f"{module}.bzz": data, f"{module}.bzs": of_books + b"cut", f"{module}.bzv": of_verses + b"cut"}


def test_books_for_sword(tmp_path):
    books = [GENESIS, ["This book is lost."], ["And these are the names, é.", "Of the sons who came."]]
    folder = unpacked_package(tmp_path / "x", sword_module(books, damaged=1))
    write_debian_corpus(tmp_path / "x.jsonl", [str(folder)])
    assert {document["text"] for document in texts(tmp_path / "x.jsonl")} == {
        "In the beginning God created it. and it was without form;\nThus the heavens and the earth were finished.",
        "And these are the names, é. Of the sons who came.",
    }


def test_of_a_file_that_unpacks_to_any_size_the_beginning_is_read(monkeypatch):
    monkeypatch.setattr(debian, "LARGEST_FILE", 1000)
    assert debian.unpacked(gzip.compress(b"a" * 100_000)) == b"a" * 1000
