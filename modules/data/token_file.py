"""The `.h5` of token ids: how it is opened, checked, and laid out on the disk.

It holds the dataset `tokens`, where its texts are divided `documents` (the tokens with which documents begin), and
attributes that say what the ids are and carry checksums of all. Tokens are read
through a memory map of the contiguous dataset, a batch in one gather: hundreds of millions of tokens a second, against
about three million with a slice of `h5py` an item. Files of the older kind (chunked) are read through `h5py`.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, model_validator

from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.schema import Schema, checked
from modules.tokenizer import Tokenizer

BOS_ID = 0
SCAN_BLOCK = 1 << 24  # tokens read at a time where a whole file has to be looked through
HEADER_ROOM = 1 << 16  # more than the attributes and the rest of the file's structure take
CHECKED_BYTES = 1 << 27  # of ids that are checked whenever the file is opened: a fifth of a second of CPU


class Attributes(Schema):
    """What an .h5 says of its tokens. Files of the older kind say nothing, those of earlier versions have no
    checksums."""

    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)] | None = None
    tokenizer_fingerprint: str | None = None
    text_bytes: Annotated[int, Field(ge=0)] | None = None
    bos_id: Annotated[int, Field(ge=0)] = BOS_ID
    tokens_crc32: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    texts: str | None = None
    symmetric: bool | None = None
    reading: str | None = None
    symbols: str | None = None
    reversed_of: str | None = None
    documents_crc32: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    attributes_crc32: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None

    @model_validator(mode="after")
    def _fit_together(self):
        if self.vocab_size is not None and self.bos_id >= self.vocab_size:
            raise ValueError(f"bos_id: expected an id below vocab_size {self.vocab_size:,}, found {self.bos_id:,}")
        if (self.tokens_crc32 is None) != (self.attributes_crc32 is None):
            raise ValueError("one of its two checksums is missing")
        return self


@dataclass(frozen=True)
class Text:
    """A text that a dataset came from: where it was when it was tokenized, and its fingerprint (text_source.py)
    then."""

    path: str
    fingerprint: str


def attributes_of(n_tokens: int, tokens_crc32: int, **said) -> dict:
    """The attributes that make_h5 writes, those of `Attributes` that are known, with a checksum of themselves and of
    the number of tokens.

    It comes first and that of the tokens last: what damages one leaves the other, and that one is missing is seen.
    """
    said = {name: value for name, value in said.items() if value is not None} | {"tokens_crc32": tokens_crc32}
    return {
        "attributes_crc32": zlib.crc32(json.dumps(said | {"tokens": n_tokens}, sort_keys=True).encode("utf-8"))
    } | said


@dataclass(frozen=True)
class TokenFile:
    """An open dataset file. The attributes are None for files of the older kind, which carry none.

    tokens: 1-D array-like of token ids, a memory map or an h5py dataset. text_bytes: size of the tokenized text in
    UTF-8 bytes, for bits per byte. tokens_crc32: CRC-32 of all ids, little-endian, as make_h5 wrote it. texts: what it
    was made from. symmetric: whether its tokenizer has no direction (tok_utils/symmetric.py). reversed_of: the
    fingerprint of the dataset of which this is the reversed control. documents: the tokens with which documents begin,
    uint64, ascending, the first 0; None where the texts are not divided. reading: how its texts were read, where not as
    by default (tok_utils/readers.py). symbols: which (tok_utils/symbols.py), where its tokenizer was not learned.
    """

    path: str
    tokens: np.ndarray | h5py.Dataset
    vocab_size: int | None
    tokenizer_fingerprint: str | None
    text_bytes: int | None
    bos_id: int = BOS_ID
    tokens_crc32: int | None = None
    texts: tuple[Text, ...] = ()
    symmetric: bool = False
    reversed_of: str | None = None
    documents: np.ndarray | None = None
    reading: str | None = None
    symbols: str | None = None

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The stretches of `length` tokens that begin at `starts` [B], as int64 [B, length]."""
        if isinstance(self.tokens, np.ndarray):
            return sliding_window_view(self.tokens, length)[starts].astype(np.int64)
        return np.stack([self.tokens[start : start + length] for start in starts]).astype(np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells two datasets apart without reading 100 GB: a digest of the length and of 64 evenly spaced stretches of
        tokens, "+", and one of bos_id and text_bytes. States of earlier versions hold the first part alone: compare
        with `matches` or `same_dataset`.
        """
        digest = hashlib.sha256(str(len(self.tokens)).encode())
        with reading(self.path):
            for start in np.linspace(0, max(0, len(self.tokens) - 4096), 64).astype(np.int64):
                digest.update(np.asarray(self.tokens[start : start + 4096], dtype="<u4").tobytes())
        rest = hashlib.sha256(f"{self.bos_id} {self.text_bytes}".encode())
        return f"{digest.hexdigest()[:16]}+{rest.hexdigest()[:8]}"

    def matches(self, recorded: str) -> bool:
        """Whether a state's record of its dataset's fingerprint, of this or of an earlier version, is that of this
        file."""
        return same_dataset(self.fingerprint, recorded)

    @functools.cached_property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest id. All of the file is read for them, once."""
        smallest, largest = zip(
            *((int(block.min()), int(block.max())) for block in self.blocks("looking at all token ids")), strict=True
        )
        return min(smallest), max(largest)

    def blocks(self, what: str) -> Iterator[np.ndarray]:
        """All tokens, SCAN_BLOCK at a time, under a bar where it takes long."""
        with reading(self.path):
            for start in bar(range(0, len(self.tokens), SCAN_BLOCK), desc=what, unit="block", delay=2, leave=False):
                yield np.asarray(self.tokens[start : start + SCAN_BLOCK])

    @property
    def is_small(self) -> bool:
        """Whether looking at all ids costs well under a second."""
        return len(self.tokens) * self.tokens.dtype.itemsize <= CHECKED_BYTES

    def check_tokens(self) -> None:
        """Compare all tokens with the checksum that the file carries, if it carries one. UserError where it differs."""
        if self.tokens_crc32 is None:
            return
        found = 0
        for block in self.blocks("checking all tokens"):
            found = zlib.crc32(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).data, found)
        if found != self.tokens_crc32:
            raise UserError(
                f"{self.path}: damaged: its tokens have the checksum {found:08x}, written were such of "
                f"{self.tokens_crc32:08x}; make it anew from its chunks (make_h5) or from the text"
            )

    def check_ids(self, vocab_size: int) -> None:
        """Refuse a file with ids that a model of `vocab_size` ids cannot read.

        All ids are looked at, under a bar where that takes long. Only large files that carry the checksum of make_h5,
        which looked at them, are believed. Raises UserError.
        """
        if self.vocab_size is not None and self.vocab_size > vocab_size:
            raise UserError(
                f"{self.path}: tokenized with a vocabulary of {self.vocab_size:,} ids, but the config's vocab_size "
                f"is {vocab_size:,}; set model_params.vocab_size to {self.vocab_size}"
            )
        if self.vocab_size is not None and self.tokens_crc32 is not None and not self.is_small:
            return
        smallest, largest = self.extremes
        worst = largest if smallest >= 0 else smallest
        if self.vocab_size is not None and not 0 <= worst < self.vocab_size:
            raise UserError(
                f"{self.path}: damaged: holds the token id {worst:,}, but says that its vocabulary has "
                f"{self.vocab_size:,} ids (0 to {self.vocab_size - 1:,}); make it anew (make_h5)"
            )
        if not 0 <= worst < vocab_size:
            raise UserError(
                f"{self.path}: holds the token id {worst:,}, but the config's vocab_size is {vocab_size:,} "
                f"(ids 0 to {vocab_size - 1:,}); use the vocab_size of the tokenizer that made the file"
            )
        if self.bos_id >= vocab_size:
            raise UserError(
                f"{self.path}: its bos_id is {self.bos_id:,}, but the config's vocab_size is {vocab_size:,} "
                f"(ids 0 to {vocab_size - 1:,})"
            )

    def check_tokenizer(self, toki: Tokenizer) -> None:
        """Refuse a tokenizer that cannot have made the file: another fingerprint, or an id beyond its vocabulary.
        UserError."""
        if self.tokenizer_fingerprint is None:
            if (largest := self.extremes[1]) >= toki.vocab_size:
                raise UserError(
                    f"{toki.folder}: not the tokenizer of {self.path}: it has {toki.vocab_size:,} ids "
                    f"(0 to {toki.vocab_size - 1:,}), and the file holds the id {largest:,}; "
                    "give the one that tokenized it"
                )
        elif self.tokenizer_fingerprint != toki.fingerprint:
            raise UserError(
                f"{toki.folder}: not the tokenizer of {self.path}: fingerprint {toki.fingerprint[:12]} with "
                f"{toki.vocab_size:,} ids, the data has {self.tokenizer_fingerprint[:12]} with "
                f"{self.vocab_size or 'unknown'}; give the one that tokenized it"
            )


def same_dataset(one: str, other: str) -> bool:
    """Whether two recorded fingerprints may be of one dataset; those of earlier versions lack the part after "+"."""
    return one == other or ("+" in one) != ("+" in other) and one.split("+")[0] == other.split("+")[0]


def open_tokens(path: str | os.PathLike[str]) -> TokenFile:
    """Open the `tokens` dataset of an .h5 file, of ours or of the older chunked kind. Small files are compared with
    their checksum.

    Raises UserError where the file is missing, damaged or of another kind; OSError where it cannot be read for another
    reason.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(
            f"{path}: no such dataset file; make it with tokenize_to_h5.py and give its path as "
            "training_params.dataset_folder"
        ) from None
    with contextlib.ExitStack() as at_failure, reading(path):
        file = at_failure.enter_context(opened(path))
        dataset = own_dataset(file, path)
        said = checked(
            Attributes, {name: _plain(dataset.attrs[name]) for name in dataset.attrs}, path, "make it anew (make_h5)"
        )
        offset = dataset.id.get_offset()  # None for chunked data: there is then no one place to map
        plain = dataset.id.get_type().get_precision() == 8 * dataset.dtype.itemsize
        tokens = dataset
        if offset is not None and plain:
            if offset + len(dataset) * dataset.dtype.itemsize > os.path.getsize(path):
                raise UserError(f"{path}: not a whole .h5 file (its tokens end beyond its end); run make_h5 again")
            tokens = np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
        else:
            tokens[:1], tokens[-1:]
        documents = documents_of(file, path, said.documents_crc32, len(dataset))
        if tokens is dataset:
            at_failure.pop_all()  # it stays open
    token_file = TokenFile(
        path,
        tokens,
        said.vocab_size,
        said.tokenizer_fingerprint,
        said.text_bytes,
        said.bos_id,
        said.tokens_crc32,
        texts_of(said.texts, path),
        bool(said.symmetric),
        said.reversed_of,
        documents,
        said.reading,
        said.symbols,
    )
    if said.attributes_crc32 is not None:
        if said.model_dump(exclude_none=True) != attributes_of(
            len(tokens), **said.model_dump(exclude={"attributes_crc32"})
        ):
            raise UserError(
                f"{path}: damaged: what it says of its tokens does not fit its checksum; make it anew (make_h5)"
            )
    if token_file.is_small:
        token_file.check_tokens()
    return token_file


def texts_of(said: str | None, h5_path: str) -> tuple[Text, ...]:
    """The texts that an .h5 says it was made from, whose paths are relative to its folder. UserError where that is not
    what make_h5 writes."""
    try:
        return tuple(
            Text(os.path.normpath(os.path.join(os.path.dirname(h5_path), path)), fingerprint)
            for path, fingerprint in json.loads(said or "[]")
        )
    except (ValueError, TypeError):
        raise UserError(
            f"{h5_path}: damaged: what it says of its texts cannot be read; make it anew (make_h5)"
        ) from None


def documents_of(file: h5py.File, path: str, crc32: int | None, n_tokens: int) -> np.ndarray | None:
    """The dataset `documents` of a file, read and checked; None where there is none and none is said to be."""
    if "documents" not in list(file) and crc32 is None:
        return None
    found = own_dataset(file, path, "documents")[:]
    if crc32 is not None and zlib.crc32(found.data) != crc32:
        raise UserError(f"{path}: damaged: its documents do not fit their checksum; make it anew (make_h5)")
    if found.dtype != np.uint64 or found[0] != 0 or found[-1] >= n_tokens or np.any(found[1:] <= found[:-1]):
        raise UserError(
            f"{path}: expected 'documents' to be ascending positions of the {n_tokens:,} tokens, uint64, the first 0; "
            "make it anew (make_h5)"
        )
    return found


def own_dataset(file: h5py.File, path: str, name: str = "tokens") -> h5py.Dataset:
    """A dataset of a file, which must be in the file itself. UserError where it is anything else than a row of
    integers."""
    if name not in list(file):  # `in file` is not true of a link to nothing
        raise UserError(
            f"{path}: expected a dataset named '{name}', found {sorted(file)[:10] or 'nothing'}; "
            "was it made by make_h5?"
        )
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise UserError(
            f"{path}: expected '{name}' to be in the file itself, "
            f"found a link to {getattr(link, 'filename', '')}{link.path}"
        )
    dataset = file[name]
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape is None
        or len(dataset.shape) != 1
        or dataset.dtype.kind not in "iu"
    ):
        raise UserError(f"{path}: expected '{name}' to be a 1-D dataset of integers, found {dataset}")
    if dataset.is_virtual or dataset.external:
        raise UserError(
            f"{path}: expected '{name}' to be in the file itself, found a dataset whose data are in other files"
        )
    if len(dataset) == 0:
        raise UserError(f"{path}: holds no {name}")
    return dataset


def opened(path: str) -> h5py.File:
    """The file, opened for reading, with a lock where the file system has locks: a file that another program writes is
    not whole."""
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        if "unable to lock" not in str(error):
            raise
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"{path}: another program has it open for writing; wait until it has closed it") from None
        return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """What h5py raises, as what it means: an OSError with the path where the system refuses, else a UserError that the
    file is damaged."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
    ) as error:  # h5py has one or another for whatever HDF5 dislikes
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), path) from None
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a whole .h5 file ({reason}); run make_h5 again") from None


def _plain(value):
    """An attribute as plain Python has it."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def check_file(path: str | os.PathLike) -> str:
    """Compare all of a file with its checksums and its vocabulary, and say in a line what was found. UserError where it
    is damaged."""
    token_file = open_tokens(path)
    if not token_file.is_small:
        token_file.check_tokens()
    if token_file.vocab_size is not None:
        token_file.check_ids(token_file.vocab_size)
    smallest, largest = token_file.extremes
    of = f" of a vocabulary of {token_file.vocab_size:,}" if token_file.vocab_size is not None else ""
    checksum = "no checksum in it: made by an earlier version"
    if token_file.tokens_crc32 is not None:
        checksum = f"checksum {token_file.tokens_crc32:08x} as written"
    return f"{token_file.path}: {len(token_file.tokens):,} tokens, ids {smallest:,} to {largest:,}{of}; {checksum}"


def create(path: Path, sizes: dict[str, tuple[int, np.dtype]], attributes: dict) -> dict[str, int]:
    """Make an .h5 with room for datasets of these lengths and types, the first with the attributes. Returns the
    position of each in the file, for its data to be written there.

    HDF5 itself would crash (a segmentation fault, seen with 1.14) where the disk is full when it closes a file. Written
    past it, the data go to the disk as fast, and a full disk is an OSError like any other.
    """
    with open(path, "wb") as file:
        # a limit on the size of files shows here
        file.truncate(HEADER_ROOM + sum(length * dtype.itemsize for length, dtype in sizes.values()))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    with h5py.File(path, "w", locking=False) as file:  # nobody else knows of it, and not every file system has locks
        made = []
        for name, (length, dtype) in sizes.items():
            space = h5py.h5s.create_simple((length,))
            made.append(
                h5py.Dataset(h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=layout))
            )
        made[0].attrs.update(attributes)
        return {name: dataset.id.get_offset() for name, dataset in zip(sizes, made, strict=True)}
