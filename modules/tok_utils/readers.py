r"""What is in a file: text, or documents one after another, whatever it is packed in.

A name says what it is: `.txt` is text; `.jsonl` (and `.json`) has a JSON object a line, `.parquet` a row a document;
`.fa`, `.fasta`, `.fna` and `.faa` are FASTA, whose headers start documents. All but Parquet may be compressed as well
(.gz, .xz, .zst). Everything is read forward, a part at a time, in memory that grows with the longest line of JSON, or a
row group's column of Parquet, and with nothing else.

Of FASTA the letters of the sequences are the text: headers, line ends and blanks are none, and small letters
(soft-masked repeats) are written large. N, a base that is not known, is a letter like the others; `fasta_n="split"`
leaves runs of it out and begins a document behind each, so that no context reaches across a gap.
"""

import dataclasses
import gzip
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import zstandard

from modules.system.errors import UserError
from modules.system.schema import shown

READ_BYTES = 1 << 20
ZSTD_INPUT = 512  # compressed bytes at a time: 4 can stand for 128 KiB, and memory is bounded
PARQUET_ROWS = 256  # that become Python strings at a time
COMPRESSIONS = (".gz", ".xz", ".zst")
FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".faa")
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"} | dict.fromkeys(
    FASTA_SUFFIXES, "fasta"
)
# Not taken from a folder: `.json` is what people keep settings in, and Parquet has its compression inside.
NOT_IN_FOLDERS = (".json", *(".parquet" + compression for compression in COMPRESSIONS))
NAMES = ".txt, .jsonl, .fa, .fasta, .fna, .faa, plain or with .gz, .xz, .zst, or .parquet"
# What stands between two documents, unless it is said; a line of FASTA is a document, so a line end is enough.
SEPARATORS = {"json": "\n\n", "parquet": "\n\n", "fasta": "\n"}
FASTA_N = ("keep", "split")
FASTA_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-."  # amino acids, bases and what stands for several; stop, gaps
RUN_OF_N = re.compile(rb"N+")
_LARGE = bytes(range(256)).upper()
DAMAGE = (EOFError, zstandard.ZstdError, lzma.LZMAError, gzip.BadGzipFile, gzip.zlib.error)


class Stream(Protocol):
    """A file to be read, or what decompresses one."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Reading:
    """How files become text; what decides it beside the files themselves.

    text_field: which field of a JSON object, or column of a Parquet file, is the document.
    document_separator: what is put between documents; of a plain text, what stands between them (CC100: "\\n\\n").
        None: a blank line, a line end for FASTA, and a plain text is not divided.
    fasta_n: "keep" or "split", see the head of this file.

    Raises UserError for anything else.
    """

    text_field: str = "text"
    document_separator: str | None = None
    fasta_n: str = "keep"

    def __post_init__(self):
        for name, needed in (("text_field", True), ("document_separator", False)):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and (needed or value is not None):
                raise UserError(f"{name}: expected a text of at least a character, found {shown(value)}")
        if self.fasta_n not in FASTA_N:
            raise UserError(f"fasta_n: expected {' or '.join(FASTA_N)}, found {shown(self.fasta_n)}")
        try:
            (self.document_separator or "").encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("document_separator: expected Unicode text, found a lone surrogate") from None

    @property
    def identity(self) -> str | None:
        """All that differs from the defaults, as JSON; None where nothing does."""
        changed = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }
        return json.dumps(changed, sort_keys=True) if changed else None

    @classmethod
    def of_identity(cls, identity: str | None) -> "Reading":
        """The reading that has this identity. UserError where there is none."""
        try:
            return cls(**json.loads(identity or "{}"))
        except (ValueError, TypeError):
            raise UserError(f"expected how a text is read, as JSON, found {shown(identity)}") from None

    def separator_of(self, kind: str) -> str | None:
        """What stands between the documents of a file of this kind; None where it is not divided."""
        return self.document_separator if self.document_separator is not None else SEPARATORS.get(kind)


class Part(NamedTuple):
    """Some of a file's text, UTF-8. `starts`: a document begins with it."""

    data: bytes
    starts: bool


def kind_and_compression(name: str) -> tuple[str, str]:
    """What a file of this name holds ("text" where the name does not tell), and how it is compressed, as a suffix or
    ""."""
    stem, compression = _uncompressed(name.lower())
    return next((kind for suffix, kind in KINDS.items() if stem.endswith(suffix)), "text"), compression


def is_text_name(name: str) -> bool:
    """Whether a file of this name in a folder is taken for a text."""
    return _uncompressed(name.lower())[0].endswith(tuple(KINDS)) and not name.lower().endswith(NOT_IN_FOLDERS)


def text_name(path: Path) -> str:
    """The name without .txt (or .jsonl ...) and what follows: `english` for `english.txt.xz`."""
    stem, _ = _uncompressed(path.name)
    suffix = next((suffix for suffix in KINDS if stem.lower().endswith(suffix)), None)
    return stem[: -len(suffix)] if suffix else path.stem


def _uncompressed(name: str) -> tuple[str, str]:
    """A name without the suffix of its compression, and that."""
    compression = next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")
    return name.removesuffix(name[len(name) - len(compression) :]) if compression else name, compression


# Documents
# --------------------------------------------------------------------------------------------------------------------


def json_parts(stream: Stream, path: Path, field: str) -> Iterator[Part]:
    """The field `field` of each line's object. UserError, with the line's number, where a line has none, or none that
    is a string.

    What is no Unicode in it (bytes that are not UTF-8, lone surrogates) stays bytes that are not UTF-8, for the encoder
    to refuse or replace.
    """
    for number, line in enumerate(_lines(stream), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        try:
            found = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: expected a JSON object, found {_start(line)} ({error})") from None
        if not isinstance(found, dict):
            raise UserError(f"{where}: expected a JSON object, found {shown(found)}")
        if field not in found:
            raise UserError(
                f"{where}: expected a field {field!r}, found {_listed(found)}; name the text's with --text_field"
            )
        if not isinstance(found[field], str):
            raise UserError(f"{where}: expected a string as {field!r}, found {shown(found[field])}")
        yield Part(found[field].encode("utf-8", "surrogatepass"), True)


class ParquetReader:
    """The documents of a Parquet file, row by row; `share_read` says how far it is, 0 to 1."""

    def __init__(self, file: BinaryIO, path: Path, field: str):
        """Raises UserError where there is no such column, or none of strings."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
        self._path, self._field, self._rows = path, field, 0
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            self._file = pyarrow.parquet.ParquetFile(file)
        except self._errors as error:
            raise self._damaged(error) from None
        schema = self._file.schema_arrow
        if field not in schema.names:
            raise UserError(
                f"{path}: expected a column {field!r}, found {_listed(schema.names)}; name the text's with --text_field"
            )
        kind = schema.field(field).type
        kind = getattr(kind, "value_type", kind)  # of a dictionary
        if not any(
            check(kind)
            for check in (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
        ):
            raise UserError(f"{path}: expected strings in the column {field!r}, found {kind}")

    @property
    def share_read(self) -> float:
        return self._rows / max(1, self._file.metadata.num_rows)

    def parts(self) -> Iterator[Part]:
        """Raises UserError, with the row's number from 1, where a row has no document, or the file is damaged."""
        try:
            for batch in self._file.iter_batches(PARQUET_ROWS, columns=[self._field], use_threads=False):
                for document in batch.column(0).to_pylist():
                    self._rows += 1
                    if document is None:
                        raise UserError(
                            f"{self._path}, row {self._rows:,}: expected a string as {self._field!r}, found null"
                        )
                    yield Part(document.encode("utf-8"), True)
        except (*self._errors, UnicodeDecodeError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self._path}: expected a whole Parquet file: {str(error).splitlines()[0]}")


def fasta_parts(stream: Stream, path: Path, n: str) -> Iterator[Part]:
    """The sequences' letters, a document for each header; see the head of this file. UserError, with the line's number,
    for what is no FASTA."""
    line, line_starts, in_header, starts, headed = 1, True, False, False, False
    while block := stream.read(READ_BYTES):
        at = 0
        while at < len(block):
            if line_starts and block[at : at + 1] == b">":
                in_header, starts, headed = True, True, True
            if in_header:
                end = block.find(b"\n", at) + 1 or len(block)
                in_header = block[end - 1] != ord("\n")
                line, line_starts, at = line + (not in_header), not in_header, end
                continue
            end = block.find(b"\n>", at) + 1 or len(block)
            rows = block[at:end]
            letters = rows.translate(_LARGE, b" \t\r\n")
            if letters and not headed:
                raise UserError(
                    f"{path}: expected FASTA, which begins with a header line (>name), found {_start(rows)}"
                )
            if strange := letters.translate(None, FASTA_LETTERS):
                ends = rows.count(b"\n", 0, rows.upper().find(strange[:1]))
                raise UserError(
                    f"{path}, line {line + ends:,}: expected the letters of a sequence, found {_start(strange[:1])}"
                )
            for part in _between_n(letters) if n == "split" else filter(None, [letters]):
                if part:
                    yield Part(part, starts)
                    starts = False
                else:
                    starts = True
            line, line_starts, at = line + rows.count(b"\n"), rows.endswith(b"\n"), end


def _between_n(letters: bytes) -> Iterator[bytes]:
    """What lies between runs of N, with b"" for each run."""
    for number, stretch in enumerate(RUN_OF_N.split(letters)):
        if number:
            yield b""
        if stretch:
            yield stretch


def _lines(stream: Stream) -> Iterator[bytes]:
    """The lines of a stream, whole, without their ends."""
    rest = []  # of a line whose end is not there yet
    while block := stream.read(READ_BYTES):
        first, *others = block.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if rest := b"".join(rest):
        yield rest


def _start(data: bytes) -> str:
    """The beginning of some bytes, to be shown in an error."""
    return shown(data[:40].decode("utf-8", "replace"))


def _listed(names) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


# Compression
# --------------------------------------------------------------------------------------------------------------------


def decompressed(file: BinaryIO, compression: str) -> Stream:
    """A stream of what is in a file, all members and frames of it; the file itself where it is not compressed."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file)
    if compression == ".xz":
        return lzma.LZMAFile(file)
    if compression == ".zst":
        return _ZstdStream(file)
    return file


class _ZstdStream:
    """Reads zstd frames one after another. The library's own stream reader ends without a word where a file is cut
    off."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame = None

    def read(self, size: int) -> bytes:
        """At least `size` bytes (up to ZSTD_INPUT's worth more), less only at the end. Raises EOFError where the file
        is cut off."""
        blocks, length = [], 0
        while length < size and (data := self._file.read(ZSTD_INPUT)):
            while data:
                self._frame = self._frame or self._new_frame()
                blocks.append(self._frame.decompress(data))
                length += len(blocks[-1])
                data = self._frame.unused_data if self._frame.eof else b""
                if self._frame.eof:
                    self._frame = None
        if length < size and self._frame is not None:
            raise EOFError("the last zstd frame is not complete")
        return b"".join(blocks)
