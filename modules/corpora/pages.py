"""The prose of pages: HTML, help pages in Mallard or DocBook, plain text. A paragraph is a line.

A paragraph is what stands in one block of a page, or between blank lines; as with docstrings and manual pages it stays
where it reads as sentences, in any script that has capital letters.
"""

import re
from html.parser import HTMLParser

from modules.corpora import manpages
from modules.corpora.docstrings import is_prose

CHARSET = re.compile(rb"charset=[\"']?([\w-]+)", re.IGNORECASE)
# Neither is running text: what a page shows on its edges, and what it quotes.
SKIPPED = {"script", "style", "head", "nav", "header", "footer", "aside", "button", "select", "pre", "svg", "math"}
SKIPPED |= set("info screen listing programlisting synopsis literallayout indexterm media mediaobject".split())
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
INLINE = set(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strike strong"
    " sub sup time tt u var wbr"
    # of Mallard and DocBook
    " app cmd file gui guiseq key keyseq sys application citetitle command computeroutput emphasis envar filename"
    " firstterm foreignphrase glossterm guibutton guiicon guilabel guimenu guimenuitem guisubmenu keycap keycombo"
    " literal menuchoice option parameter phrase productname prompt quote replaceable systemitem trademark ulink"
    " userinput varname xref"
    # of OSIS, as SWORD has it
    " divinename hi name seg transchange w".split()
)


def html_blocks(data: bytes) -> list[str]:
    return prose(page_blocks(data))


def page_blocks(data: bytes) -> list[str]:
    """The text of each block of a page of HTML or XML, in one line."""
    declared = CHARSET.search(data[:4096])
    try:
        text = data.decode(declared[1].decode() if declared else "utf-8")
    except (LookupError, UnicodeDecodeError):
        text = data.decode("utf-8", "replace")
    page = Page()
    page.feed(text)
    page.close()
    page.end_block()
    return page.blocks


def text_blocks(text: str) -> list[str]:
    """The paragraphs of plain text: what stands between blank lines, if it is not indented by four or more."""
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return prose([" ".join(block.split()) for block in blocks if not re.match(r"\n*(?: {4}|\t)", block)])


def prose(blocks: list[str]) -> list[str]:
    return [block for block in blocks if is_prose(block, manpages.SENTENCES, manpages.NOT_PROSE)]


class Page(HTMLParser):
    """The text of a page of HTML, a block for each paragraph, cell or item."""

    def __init__(self):
        super().__init__()
        self.blocks: list[str] = []
        self.block: list[str] = []
        self.skipped, self.depth = "", 0  # the element that is left out, and how many of its name are open in it

    def end_block(self) -> None:
        self.blocks.append(" ".join("".join(self.block).split()))
        self.block = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.depth:
            self.depth += tag == self.skipped
        elif tag not in VOID and (tag in SKIPPED or any(name == "hidden" for name, _ in attrs)):
            self.skipped, self.depth = tag, 1
        elif tag == "br":
            self.block.append(" ")
        if not self.depth and tag not in INLINE and tag not in VOID:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if self.depth:
            self.depth -= tag == self.skipped
        elif tag not in INLINE and tag not in VOID:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.block.append(data)
