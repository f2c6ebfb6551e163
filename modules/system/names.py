"""Names that users give, to runs, projects, tokenizers and texts: which can be names of files, and how each is shown as
what it is.

Any name that a file can have is allowed. So a name is never a pattern, a format, Markdown, HTML or a formula, and
whoever shows one says where: in a line, in Markdown, in a link. (Pictures: modules/measurement/figures.py; the HTML
page: modules/measurement/arrow_page.py.)
"""

import hashlib
import html
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from urllib.parse import quote

from modules.system.console import one_line
from modules.system.errors import UserError

LONGEST_FILE_NAME = 255  # bytes
LONGEST_NAME = (
    220  # bytes: files of a run add up to 30, as "_step" and the digits of any step and ".state" for a backup
)
FORBIDDEN = '<>:"/\\|?*' if os.name == "nt" else "/"
SHOWN_LENGTH = 60


def check_name(name: str, what: str) -> str:
    """`name`, if files in a folder of ours can be called so. UserError otherwise; `what` says whose name it is, and how
    to give another."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(character in name for character in FORBIDDEN + "\0"):
        found = repr(name)
        found = found if len(found) <= SHOWN_LENGTH else found[: SHOWN_LENGTH - 3] + "..."
        raise UserError(
            f"{what}: expected a name that a file can have (not empty, not . or .., without {' '.join(FORBIDDEN)}), "
            f"found {found}"
        )
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise UserError(f"{what}: {name!r} cannot be written in this system's file names") from None
    if length > LONGEST_NAME:
        raise UserError(
            f"{what}: expected at most {LONGEST_NAME} bytes, which leaves room for what file names add, "
            f"found {length}: {name[:SHOWN_LENGTH]!r}..."
        )
    return name


def file_name(stem: str, suffix: str) -> str:
    """`stem` and `suffix` as the name of a file. Where no file can have it, the stem is mended and cut, and a hash
    tells it from others."""
    possible = "".join("_" if character in FORBIDDEN + "\0" else character for character in stem)
    if possible == stem and len(os.fsencode(stem + suffix)) <= LONGEST_FILE_NAME:
        return stem + suffix
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:12]
    room = LONGEST_FILE_NAME - len(os.fsencode(suffix)) - len(digest) - 1
    return f"{os.fsencode(possible)[:room].decode('utf-8', 'ignore')}-{digest}{suffix}"


def as_file_systems_see(name: str) -> str:
    """The same for names that some file system takes for one: "A" and "a", and an accent on its letter or after it."""
    return unicodedata.normalize("NFC", name).casefold()


def distinct(names: Iterable[str], key: Callable[[str], str] = str) -> list[str]:
    """The names in their order, each with a number behind that is the same by `key` as one before it: "a", "a-2"."""
    taken, result = set(), []
    for name in names:
        number, candidate = 1, name
        while key(candidate) in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(key(candidate))
        result.append(candidate)
    return result


def escaped(character: str) -> str:
    """A character as Python writes it: \\n, \\x07, \\u4e2d."""
    return character.encode("unicode_escape").decode()


def in_markdown(text: str) -> str:
    """`text` for a line, a heading or a table's cell of Markdown, where nothing in it is markup."""
    text = re.sub(r"[\\`*\[\]~|$#]", r"\\\g<0>", html.escape(one_line(text), quote=False))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is a letter


def link_to(name: str) -> str:
    """The target of a Markdown or HTML link to the file `name` beside it."""
    return quote(os.fsencode(name), safe="")
