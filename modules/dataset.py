"""Windows of a token file: which tokens the model reads, in which direction, in which order.

Everything that makes forward and backward comparable is decided here. A window of T
text tokens gives T predictions: input = BOS + its first T-1 tokens, target = its T
tokens; backward flips the window first and does the same. So the *same* tokens are
predicted in both directions. (Without BOS the first token of a window would be
predicted only backward and the last only forward, and totals would not compare.)

    text tokens   a b c d
    forward   BOS a b c  ->  a b c d
    backward  BOS d c b  ->  d c b a

Held-out windows are the last ones of the file, end to end; no training window
reaches into them. Training windows overlap (`stride`), and their order is a
permutation computed on the fly from (seed, epoch, index): it needs no memory
for 10^9 windows, starts at step k in O(1), and knows nothing of the direction.

Tokens are read through a memory map of the contiguous dataset, a batch in one gather:
hundreds of millions of tokens a second, against about three million with a slice of
`h5py` an item. Files of the older kind (chunked) are read through `h5py`.
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
from typing import Annotated

import h5py
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, model_validator

from modules.console import bar
from modules.errors import UserError
from modules.schema import Schema, checked
from modules.tokenizer import Tokenizer

BOS_ID = 0
SCAN_BLOCK = 1 << 24  # tokens read at a time where a whole file has to be looked through
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
    reversed_of: str | None = None
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
    fingerprint of the dataset of which this is the reversed control.
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
            found = zlib.crc32(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")), found)
        if found != self.tokens_crc32:
            raise UserError(
                f"{self.path}: damaged: its tokens have the checksum {found:08x}, written were such of {self.tokens_crc32:08x}; "
                "make it anew from its chunks (make_h5) or from the text"
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
                f"{self.path}: damaged: holds the token id {worst:,}, but says that its vocabulary has {self.vocab_size:,} ids "
                f"(0 to {self.vocab_size - 1:,}); make it anew (make_h5)"
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
        if self.tokenizer_fingerprint not in (None, toki.fingerprint):
            raise UserError(
                f"{toki.folder}: not the tokenizer of {self.path}: fingerprint {toki.fingerprint[:12]} with {toki.vocab_size:,} "
                f"ids, the data has {self.tokenizer_fingerprint[:12]} with {self.vocab_size or 'unknown'}; give the one that tokenized it"
            )
        if self.tokenizer_fingerprint is None and (largest := self.extremes[1]) >= toki.vocab_size:
            raise UserError(
                f"{toki.folder}: not the tokenizer of {self.path}: it has {toki.vocab_size:,} ids (0 to {toki.vocab_size - 1:,}), "
                f"and the file holds the id {largest:,}; give the one that tokenized it"
            )


def same_dataset(one: str, other: str) -> bool:
    """Whether two recorded fingerprints may be of one dataset; those of earlier versions lack the part after "+"."""
    return one == other or ("+" in one) != ("+" in other) and one.split("+")[0] == other.split("+")[0]


def open_tokens(path: str | os.PathLike) -> TokenFile:
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
            tokens[:1], tokens[-1:]  # noqa: B018 (a compression that this machine lacks shows here)
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


def own_dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset `tokens` of a file, which must be in the file itself. UserError where it is anything else than a row
    of integers."""
    if "tokens" not in list(file):  # `in file` is not true of a link to nothing
        raise UserError(
            f"{path}: expected a dataset named 'tokens', found {sorted(file)[:10] or 'nothing'}; was it made by make_h5?"
        )
    link = file.get("tokens", getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise UserError(
            f"{path}: expected 'tokens' to be in the file itself, found a link to {getattr(link, 'filename', '')}{link.path}"
        )
    dataset = file["tokens"]
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.shape is None
        or len(dataset.shape) != 1
        or dataset.dtype.kind not in "iu"
    ):
        raise UserError(f"{path}: expected 'tokens' to be a 1-D dataset of integers, found {dataset}")
    if dataset.is_virtual or dataset.external:
        raise UserError(
            f"{path}: expected 'tokens' to be in the file itself, found a dataset whose data are in other files"
        )
    if len(dataset) == 0:
        raise UserError(f"{path}: holds no tokens")
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


@dataclass(frozen=True)
class Windows:
    """`count` windows of `length` tokens, the first at token `first`, each `stride` after the one before."""

    token_file: TokenFile
    first: int
    count: int
    length: int
    stride: int
    backwards: bool

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [B, length], int64, of the windows `indices` [B], in the direction of reading."""
        indices = np.asarray(indices)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(f"window {indices.max()} of {self.count}")
        targets_BT = self.token_file.gather(self.first + indices * self.stride, self.length)
        if self.backwards:
            targets_BT = targets_BT[:, ::-1]
        inputs_BT = np.empty_like(targets_BT)
        inputs_BT[:, 0] = self.token_file.bos_id
        inputs_BT[:, 1:] = targets_BT[:, :-1]
        return torch.from_numpy(inputs_BT), torch.from_numpy(np.ascontiguousarray(targets_BT))


def split(
    token_file: TokenFile, length: int, stride: int, held_out_windows: int, step_windows: int, backwards: bool
) -> tuple[Windows, Windows]:
    """Training windows and held-out windows of a file.

    The last `held_out_windows` windows, end to end, are held out; the training windows
    are all those, `stride` apart, that end before them.

    Raises UserError where the file is too short for the held-out windows and the
    `step_windows` windows of one optimizer step.
    """
    n_tokens = len(token_file.tokens)
    held_out_tokens = held_out_windows * length
    needed = held_out_tokens + length + (step_windows - 1) * stride
    if n_tokens < needed:
        raise UserError(
            f"{token_file.path}: holds {n_tokens:,} tokens, but this config needs at least {needed:,}: {held_out_tokens:,} held out "
            f"({held_out_windows:,} windows of {length}) and {needed - held_out_tokens:,} for one step of {step_windows:,} training windows; "
            "use a longer text, or a smaller held_out_tokens, valid_steps or batch_size"
        )
    held_out_start = n_tokens - held_out_tokens
    training = Windows(token_file, 0, (held_out_start - length) // stride + 1, length, stride, backwards)
    held_out = Windows(token_file, held_out_start, held_out_windows, length, length, backwards)
    return training, held_out


def step_order(step: int, step_windows: int, count: int, seed: int) -> np.ndarray:
    """Indices [step_windows] of the training windows of optimizer step `step` (from 0), out of `count`.

    Steps follow each other through a permutation of all windows, then through
    another of the next epoch: no window is left out, and none comes twice in an epoch.
    """
    positions = np.arange(step * step_windows, (step + 1) * step_windows)
    order = np.empty_like(positions)
    epochs = positions // count
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order[here] = permute(positions[here] % count, count, seed, int(epoch))
    return order


def permute(index: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Where a seeded pseudo-random permutation of range(count) sends `index` (int64 array), without building it.

    A Feistel network permutes the smallest range of 2^b numbers that holds `count`; what falls
    outside is sent through again until it falls inside (cycle walking: under two rounds on average).
    J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """
    bits = max(2, int(count - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    keys = np.random.SeedSequence([seed, epoch]).generate_state(8, np.uint64)

    def once(value: np.ndarray) -> np.ndarray:
        low, high = value & np.uint64(low_mask), value >> np.uint64(low_bits)
        for round_number, key in enumerate(keys):
            if round_number % 2 == 0:
                low = low ^ (_mix(high ^ key) & np.uint64(low_mask))
            else:
                high = high ^ (_mix(low ^ key) & np.uint64(high_mask))
        return (high << np.uint64(low_bits)) | low

    result = once(np.asarray(index).astype(np.uint64))
    outside = result >= count
    while outside.any():
        result[outside] = once(result[outside])
        outside = result >= count
    return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit. (G. Steele et al., OOPSLA 2014.)"""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
