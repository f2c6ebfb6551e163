r"""Prose in many languages that Debian has: its translated manual pages, as a text to train on.

Pages are written in roff: lines that begin with a dot are commands, the others text with escapes (`\fBbold\fP`). What a
page's author meant as running text is what stands between two commands, outside of verbatim parts. As with docstrings
(`corpus.py`), a paragraph is kept if it reads as sentences, once, and pages come in an order of their names' hashes.

The pages are translations of the same English ones, so languages compare on about the same content.
"""

import gzip
import re
from pathlib import Path

from modules.corpora.docstrings import is_prose, shuffled, write_prose
from modules.system.console import bar
from modules.system.errors import UserError

ENGLISH = "en"  # its pages stand in no folder of their own
LARGEST_PAGE = 1 << 25  # bytes; a damaged or hostile file may unpack to any size
SECTION = re.compile(r"man\d")
FONT_COMMANDS = {
    "B",
    "I",
    "SM",
    "SB",
    "BR",
    "RB",
    "BI",
    "IB",
    "IR",
    "RI",
}  # their arguments are text; of those with two fonts, without spaces
VERBATIM = {"nf": True, "EX": True, "fi": False, "EE": False}
ARGUMENT = re.compile(r'"([^"]*)"|(\S+)')
# Any script's letters (no small ones at the beginning), and the punctuation of running text.
SENTENCES = re.compile(r"[¿¡«„“\"']?[^\W\d_a-zß-ÿ].*[.!?:…][»“”\"')]?")
NOT_PROSE = re.compile(r"[\d_]|[^\w ,.;:'\"()!?¿¡«»„“”‚‘’…–-]")
ESCAPES = [
    (re.compile(pattern), text)
    for pattern, text in [
        (r'\\".*', ""),
        (r"\\f(?:\[\w*\]|\(..|.)|\\s(?:[+-]?\d+)|\\[&,/|^:]", ""),
        (r"\\-", "-"),
        (r"\\[ ~0]", " "),
        (r"\\\(aq", "'"),
        (r"\\\(dq", '"'),
        (r"\\\(lq|\\\(rq", '"'),
        (r"\\\(bu|\\\(em|\\\(en", "-"),
        (r"\\\(Fo", "«"),
        (r"\\\(Fc", "»"),
        (r"\\\*\(Aq", "'"),
        (r"\\\*(?:\(..|\[[^]]*\]|.)", ""),  # strings, which Perl's pages put around code
        (r"\\e", r"\\"),
        (r"\\(?:\[[^]]*\]|\(..|\*.)", ""),
    ]
]


def write_manpage_corpus(
    path: str | Path, language: str, folder: str | Path = "/usr/share/man", max_mb: float = 20.0
) -> int:
    """Write the prose of the manual pages in `language` ("fr", "de", "pt_BR", ...; "en") under `folder` as UTF-8 to
    `path`.

    One paragraph a line, a blank line after each page; ends after the page with which `max_mb` (10^6 bytes) is reached.
    Returns the bytes written. UserError where there are no such pages, or no prose in them.
    """
    root = Path(folder) if language == ENGLISH else Path(folder) / language
    files = shuffled([root], "*.gz", lambda inside: SECTION.fullmatch(inside.parts[0]) is not None)
    if not files:
        raise UserError(
            f"{root}: expected manual pages (man1/*.gz, ...), found none; on Debian: "
            f"apt-get install manpages-{language}, or where the system leaves pages out: "
            f"apt-get download manpages-{language}, dpkg -x FILE.deb FOLDER, --folder FOLDER/usr/share/man"
        )
    progress = bar(
        ([prose_blocks(read_page(file))] for file in files),
        total=len(files),
        unit=" pages",
        desc=f"manual pages, {language}",
    )
    return write_prose(path, progress, max_mb, f"{root}: no prose in {len(files)} manual pages")


def read_page(file: Path) -> str:
    """The source of a page; "" where it is damaged or a link to nowhere. Of one beyond all measure its beginning."""
    try:
        with gzip.open(file) as page:
            return page.read(LARGEST_PAGE).decode("utf-8", errors="replace")
    except (OSError, EOFError, gzip.zlib.error):
        return ""


def prose_blocks(page: str) -> list[str]:
    """The paragraphs of a page's source that read as sentences, each as one line without markup."""
    blocks, block, verbatim, tag = [], [], False, False
    for line in [*page.splitlines(), ".end"]:
        command, _, rest = line[1:].strip().partition(" ") if line.startswith((".", "'")) else ("", "", line)
        if command in FONT_COMMANDS:
            arguments = [quoted or bare for quoted, bare in ARGUMENT.findall(rest)]
            rest = (" " if len(command) == 1 or command.startswith("S") else "").join(arguments)
        elif command or line.startswith("."):  # whatever else it commands, a paragraph ends
            verbatim, tag = VERBATIM.get(command, verbatim), command == "TP"
            blocks.append(" ".join(block))
            block = []
            continue
        if not verbatim:
            block.append(plain(rest).strip())
        if tag or not rest.strip():  # what .TP indents is headed by a line, an option's name mostly
            blocks.append(" ".join(block))
            block, tag = [], False
    return [block for block in blocks if is_prose(block, SENTENCES, NOT_PROSE)]


def plain(text: str) -> str:
    """Text without roff's escapes."""
    for pattern, replacement in ESCAPES:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())
