"""Tokens that people have already, to an .h5: `ids_to_h5`.

A `.npy` holds a row of integers, a `.bin` nothing but the ids, one after another, little-endian (nanoGPT's are uint16).
They are read a block at a time, compared with the vocabulary, and written as `make_h5` writes those of a text. What
text they stand for is not known, so the file has no `text_bytes`, and there are no bits per byte; no tokenizer is named
in it.
"""

import os
import zlib
from pathlib import Path

import numpy as np

from modules.data.token_file import attributes_of, create
from modules.system.console import bar
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.limits import check_number
from modules.system.locks import alone
from modules.tok_utils.disk import require
from modules.tok_utils.encoder import id_dtype
from modules.tokenizer import MOST_IDS

ID_TYPES = ("uint8", "uint16", "uint32", "int32", "int64", "uint64")
BLOCK = 1 << 22  # ids at a time


def ids_to_h5(
    ids_path: str | os.PathLike,
    out_h5_folder: str | os.PathLike,
    vocab_size: int,
    bos_id: int | None = None,
    id_type: str = "uint16",
) -> Path:
    """Write the ids in a .npy or .bin as `<out_h5_folder>/<name>.h5`.

    Args:
        vocab_size: the number of ids of the tokenizer that made them; every id must be below it.
        bos_id: the id that stands before every window, such as that of <|endoftext|>. None: there is none, and one more
            than the vocabulary has is added for it, `vocab_size`.
        id_type: how the ids in a .bin are stored; a .npy says it itself.

    Returns the path of the file. Raises UserError where the file is missing, empty, no row of integers, or holds an id
    beyond the vocabulary: with its position. Another command at work on the same .h5 is waited for.
    """
    ids_path = Path(ids_path)
    check_number("vocab_size", vocab_size, 1, MOST_IDS - 1, "ids of the tokenizer that made these")
    if bos_id is not None:
        check_number("bos_id", bos_id, 0, vocab_size - 1, "one of the ids")
    size = vocab_size + (bos_id is None)
    ids = _mapped(ids_path, id_type)
    path = Path(out_h5_folder) / f"{ids_path.stem}.h5"
    dtype = id_dtype(size)
    tokens_crc32 = 0
    for start in _blocks(ids, f"check {ids_path.name}"):
        block = ids[start : start + BLOCK]
        if int(block.max()) >= vocab_size or int(block.min()) < 0:
            at = int(np.flatnonzero((block < 0) | (block >= vocab_size))[0])
            raise UserError(
                f"{ids_path}: expected ids of 0 to {vocab_size - 1:,}, found {int(block[at]):,} at "
                f"position {start + at:,}; give the --vocab_size of their tokenizer, and for a .bin the right --id_type"
            )
        tokens_crc32 = zlib.crc32(np.ascontiguousarray(block, dtype=dtype).data, tokens_crc32)
    require(path.parent, len(ids) * dtype.itemsize)
    attributes = attributes_of(
        len(ids), tokens_crc32=tokens_crc32, vocab_size=size, bos_id=vocab_size if bos_id is None else bos_id
    )
    with alone(path), replacing(path) as temporary:
        offset = create(temporary, {"tokens": (len(ids), dtype)}, attributes)["tokens"]
        with open(temporary, "rb+") as file:
            file.seek(offset)
            for start in _blocks(ids, f"write {path.name}"):
                file.write(np.ascontiguousarray(ids[start : start + BLOCK], dtype=dtype).data)
    return path


def _blocks(ids: np.ndarray, what: str):
    return bar(range(0, len(ids), BLOCK), desc=what, unit="block", delay=2)


def _mapped(path: Path, id_type: str) -> np.ndarray:
    """The ids in a file, mapped into memory. UserError where it holds none."""
    if path.suffix.lower() not in (".npy", ".bin"):
        raise UserError(f"{path}: expected a .npy or a .bin of ids")
    if not path.is_file():
        raise UserError(f"{path}: no such file of ids")
    size = path.stat().st_size
    if path.suffix.lower() == ".bin":
        if id_type not in ID_TYPES:
            raise UserError(f"id_type: expected one of {', '.join(ID_TYPES)}, found {id_type!r}")
        dtype = np.dtype(id_type).newbyteorder("<")
        if size == 0 or size % dtype.itemsize:
            raise UserError(f"{path}: expected ids of {dtype.itemsize} bytes each ({id_type}), found {size:,} bytes")
        return np.memmap(path, dtype=dtype, mode="r")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"{path}: expected a whole .npy of ids: {str(error).splitlines()[0]}") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) == 0:
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive"
        raise UserError(f"{path}: expected a row of integers, found {found}")
    return ids
