r"""Byte-level BPE with GPT-2's split: the merges of the `tokenizers` library, trained by `gigabpe` where it can.

`gigabpe` gives the same merges some ten times as fast, but it reads files, and cuts them at every line end, also in
words that hold several ("\n\n"). So it gets the texts in files of their own, in which a vertical tab stands for every
line end: to GPT-2's pattern one white space is like another, and as the two are neighbours among the bytes, even ties
fall alike. Line ends are then free to stand between the items of the feed. An item that ends in white space would take
the line end into its last word; there another file begins. What it cannot have is a text with vertical tabs.

`tokenizers` pre-tokenizes an item of its feed in one thread, and is faster with lines than with a whole text (3.7 and
2.5 MB a CPU second), so texts go in as lines, cut where the pattern cannot see across (before a line break that follows
a non-space): the tokenizer is the one that the whole text in one piece would give.

A run of letters, digits, signs or blanks longer than LONGEST_RUN (a text without blanks is one) goes in as several: the
time that merging takes grows with the text times the length of its words, and for one word of 20 MB it would not end.
Ordinary texts have none.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import regex
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from modules.system.console import tell
from modules.system.errors import interruptibly
from modules.system.files import scratch_file
from modules.tokenizer import BOS_TOKEN

try:
    import gigabpe
except ImportError:  # no wheel for this system: `tokenizers` trains
    gigabpe = None

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LINE_BREAK = re.compile(r"(?<=\S)(?=\n)")
LONGEST_RUN = 4000  # characters; no word of a language comes near, and 20 MB without a blank cost half a minute more
LONG_RUN = regex.compile(
    rf"\p{{L}}{{{LONGEST_RUN}}}|\p{{N}}{{{LONGEST_RUN}}}|[^\s\p{{L}}\p{{N}}]{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}"
)
LONG_BREAK = re.compile(rf"\n\s{{{LONGEST_RUN // 2}}}")
VERTICAL_TAB = "\v"
SPELLED_TAB, SPELLED_LINE_END = "\u010b", "\u010a"  # as byte-level tokens have them
SPARE = 1.1  # of the disk, for the files of a text

Feed = Callable[[], Iterator[str]]  # the texts' pieces, from the first, at every call


class _NotForGigabpe(Exception):
    """Why `gigabpe` cannot train on a text."""


def untrained() -> Tokenizer:
    """A tokenizer with GPT-2's split into pieces and no merges yet."""
    return _backend(models.BPE())


def bytes_only() -> Tokenizer:
    """`untrained` with the 256 bytes as its tokens."""
    return _backend(models.BPE({character: number for number, character in enumerate(ALPHABET)}, []))


def _backend(model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def train(feed: Feed, vocab_size: int, folder: Path, feed_bytes: int) -> Tokenizer:
    """The tokenizer that `tokenizers` trains on the texts: BOS, the 256 bytes, then merges, up to `vocab_size` ids.

    Args:
        feed: gives pieces of the texts, at whose ends words end.
        folder: where `gigabpe` may have files of about `feed_bytes` bytes for the time of the training.
    """
    try:
        return _by_gigabpe(feed, vocab_size, folder, feed_bytes)
    except _NotForGigabpe as reason:
        tell(f"{reason}: the tokenizers library trains, which takes some ten times as long", sys.stderr)
    backend = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS_TOKEN], initial_alphabet=ALPHABET, show_progress=False
    )
    interruptibly(lambda: backend.train_from_iterator(items_of(feed()), trainer))
    return backend


def items_of(pieces: Iterable[str], by_line: bool = True) -> Iterator[list[str]]:
    """Each piece as items, cut within runs that are too long, which is said once: its lines, or the whole of it where
    not `by_line` and nothing is to be cut."""
    told = False
    for piece in pieces:
        if not by_line and not may_have_long_runs(piece):
            yield [piece]
            continue
        lines = LINE_BREAK.split(piece)
        items = [item for line in lines for item in without_long_runs(line)]
        if len(items) > len(lines) and not told:
            told = True
            what = f"runs of more than {LONGEST_RUN:,} letters, digits, signs or blanks"
            tell(f"{what} are cut at that length for training", sys.stderr)
        yield items


def without_long_runs(line: str) -> list[str]:
    """A line, cut within each run that is longer than LONGEST_RUN."""
    if len(line) <= LONGEST_RUN:
        return [line]
    cuts = [match.end() for match in LONG_RUN.finditer(line)]
    return [line[start:stop] for start, stop in pairwise([0, *cuts, len(line)]) if start < stop]


def may_have_long_runs(piece: str) -> bool:
    """Quick, and true of every piece that has one: half of it lies in one line, or is white space behind a line end."""
    return max(map(len, piece.split("\n"))) >= LONGEST_RUN // 2 or LONG_BREAK.search(piece) is not None


def _by_gigabpe(feed: Feed, vocab_size: int, folder: Path, feed_bytes: int) -> Tokenizer:
    """`train` by `gigabpe`. Raises _NotForGigabpe where it cannot."""
    if gigabpe is None:
        raise _NotForGigabpe("gigabpe is not installed (pip install gigabpe)")
    if shutil.disk_usage(folder).free < SPARE * feed_bytes:
        raise _NotForGigabpe(f"{folder}: no room for a copy of the text while the tokenizer is trained")
    train_bpe = gigabpe.train_bpe  # pyrefly: ignore[missing-attribute] (it is compiled, and has no stubs)
    with contextlib.ExitStack() as files:
        paths = _write_files(feed(), folder, files)
        _, merges = interruptibly(
            lambda: train_bpe(paths, vocab_size, special_tokens=[BOS_TOKEN], pretokenizer="bytelevel")
        )
    # It gives bytes that the text lacks no ids, and so has room for more merges.
    vocab = {token: i for i, token in enumerate([BOS_TOKEN, *ALPHABET])}
    kept = []
    for pair in merges:
        if len(vocab) == vocab_size:
            break
        left, right = (token.replace(SPELLED_TAB, SPELLED_LINE_END) for token in pair)
        vocab.setdefault(left + right, len(vocab))
        kept.append((left, right))
    backend = _backend(models.BPE(vocab, kept))
    backend.add_special_tokens([AddedToken(BOS_TOKEN, normalized=False, special=True)])
    return backend


def _write_files(pieces: Iterator[str], folder: Path, files: contextlib.ExitStack) -> list[str]:
    """The pieces as `gigabpe` is to read them, in files that go when `files` is closed; their paths."""
    paths, out = [], None
    for items in items_of(pieces, by_line=False):
        for item in items:
            if VERTICAL_TAB in item:
                raise _NotForGigabpe("the text has vertical tabs, which gigabpe is given for line ends")
            if out is None:
                path = files.enter_context(scratch_file(folder))
                paths.append(str(path))
                out = open(path, "wb", buffering=1 << 16)
                files.callback(out.close)
            ends_in_space = item[-1:].isspace()
            out.write((item.replace("\n", VERTICAL_TAB) + "\n" * (not ends_in_space)).encode("utf-8"))
            if ends_in_space:
                out.close()
                out = None
    if out is not None:
        out.close()
    return paths
