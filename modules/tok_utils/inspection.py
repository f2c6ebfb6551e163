"""A look at texts before hours of work: which are taken, whether they are texts, and whether the tokenizer keeps what
they say."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from modules.system.console import tell
from modules.system.errors import UserError
from modules.tok_utils.encoder import Encoder, ids_differ
from modules.tok_utils.progress import readable
from modules.tok_utils.readers import NAMES, Reading, is_text_name, kind_and_compression, text_name
from modules.tok_utils.text_source import PLAIN, TextSource, find_texts, raw_head, spread_samples
from modules.tokenizer import Tokenizer

LISTED = 20  # texts, and things left out, that are named one by one
HEAD_BYTES = 1 << 16  # of a text that are looked at
MOST_NULS = 0.02  # of these bytes; of Latin letters in UTF-16 half are
MOST_UNKNOWN = 0.01  # of a sample's tokens; with more, a tokenizer is not one for this text
MOST_UNKNOWN_WORDS = 0.5  # the same of a tokenizer of whole words, which leaves the rare ones out
SAMPLED_TEXTS = 50  # of a folder, evenly: encoding a sample takes a tenth of a second
SHOWN_CHARACTERS = 30
PARQUET = b"PAR1"
# How files begin that are no text in UTF-8: at which byte, with what, and what they are.
SIGNS = [
    (0, b"\x1f\x8b", "gzip data: name it {kind}.gz"),
    (0, b"\xfd7zXZ\x00", "xz data: name it {kind}.xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data: name it {kind}.zst"),
    (4, b"1AY&SY", "bzip2 data: decompress it"),
    (257, b"ustar", "a tar archive: unpack it"),
    (0, b"PK\x03\x04", "a zip archive, as .docx and .epub are: take the text out"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (0, b"Rar!\x1a\x07", "a rar archive: unpack it"),
    (0, b"%PDF-", "a PDF document: take the text out"),
    (0, b"{\\rtf", "an RTF document: save it as plain text"),
    (0, b"\xd0\xcf\x11\xe0", "an Office document: save it as plain text"),
    (0, PARQUET, "a Parquet file: name it .parquet"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "a database"),
    (0, b"\x7fELF", "a program"),
    (0, b"\xff\xfe\x00\x00", "text in UTF-32: convert it to UTF-8"),
    (0, b"\x00\x00\xfe\xff", "text in UTF-32: convert it to UTF-8"),
    (0, b"\xff\xfe", "text in UTF-16: convert it to UTF-8"),
    (0, b"\xfe\xff", "text in UTF-16: convert it to UTF-8"),
]


def taken_texts(path: Path, reading: Reading = PLAIN) -> list[Path]:
    """The texts that `path` names (see `find_texts`), each looked at; said once: what is taken, with sizes, and what is
    left out and why.

    Raises UserError where there is none, or one is no text in UTF-8.
    """
    texts = find_texts(path)
    for text in texts:
        check_is_text(text, reading)
    _tell_texts(path, tuple(texts))
    return texts


@functools.cache  # of the steps that take the same texts the first says it
def _tell_texts(path: Path, texts: tuple[Path, ...]) -> None:
    sizes = [text.stat().st_size for text in texts]
    _tell_each(
        [f"text: {text}, {readable(size)}" for text, size in zip(texts, sizes, strict=True)],
        f"texts; {readable(sum(sizes))} in all",
    )
    _tell_each([f"left out: {entry} ({reason})" for entry, reason in left_out(path)], "left out")


def _tell_each(lines: list[str], what: str) -> None:
    for line in lines[:LISTED]:
        tell(line, sys.stderr)
    if len(lines) > LISTED:
        tell(f"... and {len(lines) - LISTED:,} more {what}", sys.stderr)


def left_out(path: Path) -> Iterator[tuple[Path, str]]:
    """What lies in a folder of texts and is not taken, and why; hidden files and our own folders of chunks are passed
    over."""
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if entry.is_dir():
            if not entry.name.endswith("_tokens") and not entry.name.startswith("."):
                yield entry, "a folder: texts in it are not looked for"
        elif not is_text_name(entry.name):
            if not entry.name.startswith("."):
                yield entry, f"its name does not end in {NAMES}"
        elif not entry.exists():
            yield entry, "a link to nothing"
        elif not entry.is_file():
            yield entry, "not a regular file"


def check_is_text(path: Path, reading: Reading = PLAIN) -> None:
    """Raises UserError where a file, or what is compressed in it, begins as nothing does that its name may stand for,
    or where the first of its documents is none."""
    kind, compression = kind_and_compression(path.name)
    head = raw_head(path, HEAD_BYTES)
    inside = "inside its compression " if compression else ""
    expected = "a Parquet file" if kind == "parquet" else "FASTA" if kind == "fasta" else "text in UTF-8"
    suffix = ".txt" if kind == "text" else path.name[len(text_name(path)) :].removesuffix(compression)
    for position, sign, what in SIGNS:
        if head[position:].startswith(sign) and not (kind == "parquet" and sign == PARQUET):
            raise UserError(f"{path}: expected {expected}, found {inside}{what.format(kind=suffix)}")
    if kind == "parquet":
        if not head.startswith(PARQUET):
            raise UserError(f"{path}: expected {expected}, found none: it does not begin as one does")
    elif head.count(0) > MOST_NULS * len(head):
        raise UserError(
            f"{path}: expected {expected}, found {inside}{head.count(0):,} null bytes among the first {len(head):,}: "
            "text in UTF-16, or no text"
        )
    if kind != "text":
        with TextSource(path, reading) as source:
            if not source.read(0, 1):
                raise UserError(f"{path}: the text is empty: there is no document in it, or none with a letter")


def check_kept(texts: list[Path], toki: Tokenizer, reading: Reading = PLAIN, encoder: Encoder | None = None) -> None:
    """Encode samples of the texts and compare what their ids say, and that an `encoder`'s are the same. What the
    tokenizer's own normalizer makes of a text counts as the text.

    Lost white space and rare unknown tokens are said. Raises UserError where anything else is lost, or `encoder`
    differs.
    """
    tokens = unknown = 0
    lost_space = False
    for text in texts[:: max(1, len(texts) // SAMPLED_TEXTS)]:
        for sample in spread_samples(text, reading):
            ids = toki.encode(sample)
            if encoder is not None and encoder.encode(sample.encode("utf-8")).tolist() != ids:
                raise ids_differ(text, "in a sample of it")
            unknown_here = 0 if toki.unk_id is None else ids.count(toki.unk_id)
            tokens, unknown = tokens + len(ids), unknown + unknown_here
            wanted, kept = toki.round_trip(sample, ids)
            if kept == wanted or unknown_here:
                continue
            if kept.split() != wanted.split() and "".join(kept.split()) != "".join(wanted.split()):
                raise UserError(
                    f"{text}: {toki.folder} does not keep what it says: {_difference(wanted, kept)}; "
                    "take a tokenizer that was trained on such text"
                )
            if not lost_space:
                tell(
                    f"{text}: {toki.folder} does not keep all of its white space: {_difference(wanted, kept)}",
                    sys.stderr,
                )
                lost_space = True
    words = toki.definition["model"].get("type") == "WordLevel"
    if unknown > (MOST_UNKNOWN_WORDS if words else MOST_UNKNOWN) * tokens:
        raise UserError(
            f"{texts[0].parent}: of a sample {unknown / tokens:.1%} of the tokens are unknown to {toki.folder}: "
            "take a tokenizer that was trained on such text"
        )
    if unknown:
        tell(
            f"{texts[0].parent}: of a sample {unknown / tokens:.2%} of the tokens are unknown to {toki.folder}; "
            "they become one and the same",
            sys.stderr,
        )


def _difference(wanted: str, kept: str) -> str:
    """The first place where two texts part, in words."""
    at = next(
        (i for i, (one, other) in enumerate(zip(wanted, kept, strict=False)) if one != other),
        min(len(wanted), len(kept)),
    )
    start = max(0, at - SHOWN_CHARACTERS // 3)
    return f"{wanted[start : start + SHOWN_CHARACTERS]!r} becomes {kept[start : start + SHOWN_CHARACTERS]!r}"
