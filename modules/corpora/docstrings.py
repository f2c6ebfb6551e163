"""English prose that is on the machine anyway: the docstrings of the installed Python packages.

The demo needs several MB of real text without a download, and the licence of a
text that we ship would be ours to keep. Every installation of this project has
torch, numpy, matplotlib, wandb and the standard library, whose docstrings hold
about 10 MB of sentences. Source files are parsed with `ast`, never imported, so
nothing of theirs runs; parsing is nearly all of the time (a minute of CPU), so
it is spread over processes.

Kept is what reads as sentences. A docstring falls into blocks, one wherever a
line is blank or the indentation changes, which separates the prose of
numpy-style parameter lists from the names above it; a block stays if it begins with a capital, ends
a sentence and is nearly all letters, which leaves out code, doctests,
tables and headings. Repeated blocks (wrappers copy the docstrings of what they wrap) are kept once.

The order of the files is that of a hash of their names: the same on every run,
but with every package in every part of the text, so that the held-out end is
text of the same kind as the rest.
"""

import ast
import hashlib
import re
import signal
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from modules.system.console import Bar, bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.processes import available_cores

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib"}
FILES_A_TASK = 32  # enough to hide the cost of sending one to a process
SMALLEST_BLOCK = 40  # characters; shorter ones are mostly headings with a full stop
PROSE_SHARE = 0.9  # of letters, spaces and common punctuation in a block
MARKUP = re.compile(r":[a-z:]+:(?=`)|`")  # :class:`Tensor` and ``x`` in reStructuredText
SENTENCES = re.compile(r"[A-Z].*[.!?:]")
NOT_PROSE = re.compile(r"[^A-Za-z ,.;:'\"()!?-]")


def write_docstring_corpus(path: str | Path, max_mb: float, folders: list[str] | None = None) -> int:
    """Write the prose of all docstrings under `folders` (by default those of Python and its packages) as UTF-8 to
    `path`.

    One block a line, a blank line after each docstring; ends after the file with which `max_mb` (10^6 bytes) is
    reached. Returns the bytes written. UserError where there is no prose at all.
    """
    searched = [Path(folder) for folder in folders] if folders else installed_folders()
    files = shuffled(searched, "*.py", lambda inside: not SKIPPED_FOLDERS.intersection(inside.parts))
    # Ctrl-C is this process's to tell of.
    pool = ProcessPoolExecutor(available_cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL))
    try:
        progress = bar(
            pool.map(file_prose, files, chunksize=FILES_A_TASK), total=len(files), unit=" files", desc="docstrings"
        )
        return write_prose(
            path,
            progress,
            max_mb,
            f"no prose in the docstrings of {len(files)} Python files; name folders that hold Python sources",
        )
    except BrokenProcessPool:
        raise UserError(
            f"{path}: a process that reads docstrings was killed, as the kernel does where memory is short; "
            "nothing was written"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def write_prose(path: str | Path, progress: Bar, max_mb: float, if_none: str) -> int:
    """Write blocks of prose to `path`, each once: a block a line, a blank line after each document. Returns the bytes
    written.

    progress: for each file its documents, each a list of blocks. Ends after the file with which `max_mb` (10^6 bytes)
    is reached. Raises UserError(if_none) where there is no block at all.
    """
    seen: set[bytes] = set()
    written = 0
    with replacing(path) as temporary, open(temporary, "wb") as out:
        for documents in progress:
            for blocks in documents:
                if new := [block for block in blocks if is_new(block, seen)]:
                    written += out.write(("\n".join(new) + "\n\n").encode(errors="replace"))
            progress.set_postfix_str(f"{written / 1e6:.1f} MB", refresh=False)
            if written >= int(max_mb * 1e6):
                break
        if not written:
            raise UserError(if_none)
    return written


def installed_folders() -> list[Path]:
    """Where this Python keeps its standard library and its packages."""
    paths = sysconfig.get_paths()
    return sorted({Path(paths[key]) for key in ("stdlib", "purelib", "platlib")})


def shuffled(folders: list[Path], name: str, wanted: Callable[[Path], bool]) -> list[Path]:
    """All files under `folders` of that name (a glob pattern) whose path inside the folder is wanted, by a hash of it:
    shuffled, and always alike."""
    found = {}
    for folder in folders:
        for file in folder.rglob(name):
            inside = file.relative_to(folder)
            if wanted(inside) and file.is_file():  # reading a pipe would wait for ever
                found[hashlib.sha256(inside.as_posix().encode()).digest(), file] = file
    return [found[key] for key in sorted(found)]


def file_prose(file: Path) -> list[list[str]]:
    """The blocks of prose of each docstring of a source file; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
        return [prose_blocks(docstring) for docstring in docstrings(tree)]
    # a parser's stack that is full is a MemoryError
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []


def docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of the module, classes and functions under `node`, in the order of the text."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if docstring := ast.get_docstring(node):
            yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler)):  # expressions, most of a tree, hold no definitions
            yield from docstrings(child)


def prose_blocks(docstring: str) -> list[str]:
    """The blocks of a docstring that read as sentences, each as one line without markup."""
    blocks, block, indentation = [], [], 0
    for line in [*docstring.splitlines(), ""]:
        text = line.strip()
        this = len(line) - len(line.lstrip())
        if block and (not text or this != indentation):
            blocks.append(MARKUP.sub("", " ".join(block)))
            block = []
        if text:
            block.append(text)
            indentation = this
    return [block for block in blocks if is_prose(block)]


def is_prose(block: str, sentences: re.Pattern = SENTENCES, not_prose: re.Pattern = NOT_PROSE) -> bool:
    """Whether a line of text is sentences (by default English) rather than code, a table, a heading or a list of
    names."""
    if len(block) < SMALLEST_BLOCK or not sentences.fullmatch(block):
        return False
    return len(not_prose.findall(block)) <= (1 - PROSE_SHARE) * len(block)


def is_new(block: str, seen: set[bytes]) -> bool:
    """Whether this block has not come up before; remembers it by a 16-byte hash."""
    key = hashlib.blake2b(block.encode(errors="surrogatepass"), digest_size=16).digest()
    if key in seen:
        return False
    seen.add(key)
    return True
