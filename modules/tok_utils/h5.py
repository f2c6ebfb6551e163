"""Chunks to one .h5: `make_h5`.

The file holds one dataset, `tokens` [number of tokens], contiguous on the disk so that training can map it into memory,
uint16 where every id fits and uint32 otherwise; and where the texts are divided into documents `documents`, uint64, the
tokens with which these begin, the first 0. The attributes: `vocab_size`, `tokenizer_fingerprint`, `bos_id`, and
`text_bytes`, the UTF-8 bytes that the ids stand for (bits per byte need it), `texts` (path relative to the .h5 and
fingerprint of each), `symmetric` (whether the tokenizer has no direction), and the checksums of all ids and of the
attributes. The file carries no times, so the same text and tokenizer give the same bytes.
"""

import collections
import concurrent.futures
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from modules.data.token_file import attributes_of, create, open_tokens
from modules.system.console import bar
from modules.system.errors import UserError, describe_os_error
from modules.system.files import replacing
from modules.system.locks import alone
from modules.system.processes import this_process
from modules.tok_utils.disk import require
from modules.tok_utils.encoder import id_dtype
from modules.tok_utils.job import AGAIN, MANIFEST, Manifest, Row, damaged, read_chunk, read_manifest
from modules.tok_utils.progress import readable
from modules.tok_utils.symbols import symbols_of
from modules.tok_utils.symmetric import why_not_symmetric
from modules.tokenizer import Tokenizer

SNIPPET_TOKENS = 60
READERS = 2  # threads that read and check chunks while another is written


def make_h5(
    pt_folder: str | os.PathLike,
    out_h5_folder: str | os.PathLike,
    toki: Tokenizer,
    reversed_of: str | None = None,
    txt_folder: str | os.PathLike | None = None,
) -> Path:
    """Join the chunks that `tokenize_folder` made into `<out_h5_folder>/<text>.h5`; every chunk is checked as it is
    read.

    Args:
        pt_folder: the folder with the chunks, or the folder of the text beside which they lie. out_h5_folder: made if
        need be. A file of that name there is replaced once the new one is whole. toki: the tokenizer that made the ids.
        reversed_of: the fingerprint of a dataset (modules/data/token_file.py) of whose text, reversed, this is made:
        its control. txt_folder: where the texts lie; by default beside the chunks.

    Returns the path of the file. Of several processes under torchrun the first writes it; the others return at once.

    Raises UserError where chunks are missing, damaged, not finished or of another tokenizer, or the disk has too little
    room.
    """
    folder = _chunks_folder(Path(pt_folder))
    path = Path(out_h5_folder) / f"{folder.name.removesuffix('_tokens')}.h5"
    if this_process().rank > 0:
        return path
    manifest = read_manifest(folder)
    if manifest is None or manifest.chunks is None:
        raise UserError(
            f"{folder}: tokenization has not finished; start tokenize_folder (tokenize_to_h5.py) again, it goes on "
            "where it stopped"
        )
    if manifest.tokenizer_fingerprint != toki.fingerprint:
        raise UserError(f"{folder} holds chunks of another tokenizer than {toki.folder}: give the one that made them")
    if manifest.bos_id != toki.bos_id:
        raise UserError(
            f"{toki.folder} has the BOS id {toki.bos_id}, and had {manifest.bos_id} when the chunks in {folder} were "
            "made: put tokenizer_config.json back as it was"
        )
    dtype = id_dtype(toki.vocab_size)
    rows = manifest.chunks
    total = sum(row.tokens for row in rows)
    require(path.parent, total * dtype.itemsize + sum(8 * ((row.documents or 0) + 1) for row in rows))
    with alone(path):
        _write(path, folder, Path(txt_folder or folder.parent), manifest, rows, toki, total, dtype, reversed_of)
    return path


def _write(
    path: Path,
    folder: Path,
    txt_folder: Path,
    manifest: Manifest,
    rows: list[Row],
    toki: Tokenizer,
    total: int,
    dtype: np.dtype,
    reversed_of: str | None,
) -> None:
    """Write the .h5 at `path`, whole or not at all."""
    tokens_crc32 = 0
    for row in rows:
        tokens_crc32 = joined_crc32(tokens_crc32, row.tokens_crc32, row.tokens * dtype.itemsize)
    # Relative: data and text that are moved together still know each other, and the same folders give the same bytes.
    texts = [(os.path.relpath(txt_folder / text.name, path.parent), text.fingerprint) for text in manifest.texts]
    documents = _documents(folder, rows, manifest.identity)
    attributes = attributes_of(
        total,
        vocab_size=toki.vocab_size,
        tokenizer_fingerprint=toki.fingerprint,
        bos_id=toki.bos_id,
        text_bytes=sum(row.text_bytes for row in rows),
        tokens_crc32=tokens_crc32,
        texts=json.dumps(texts),
        symmetric=why_not_symmetric(toki) is None,
        reading=manifest.reading,
        symbols=symbols_of(toki),
        reversed_of=reversed_of,
        documents_crc32=None if documents is None else zlib.crc32(documents.data),
    )
    try:
        with replacing(path) as temporary:
            sizes = {"tokens": (total, dtype)} | (
                {} if documents is None else {"documents": (len(documents), documents.dtype)}
            )
            offsets = create(temporary, sizes, attributes)
            with open(temporary, "rb+") as file:
                if documents is not None:
                    file.seek(offsets["documents"])
                    file.write(documents.data)
                file.seek(offsets["tokens"])

                def ids_of(numbered: tuple[int, Row]) -> np.ndarray:
                    number, row = numbered
                    ids = _read(_chunk(folder, number), row, manifest.identity, "tokens", row.tokens_crc32)
                    if ids.dtype != dtype or (len(ids) and ids.max() >= toki.vocab_size):
                        raise damaged(_chunk(folder, number))
                    return ids

                with bar(desc=f"write {path.name}", unit="chunk", total=len(rows)) as written:
                    for ids in read_ahead(ids_of, enumerate(rows)):
                        file.write(ids.data)
                        written.update()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {os.strerror(error.errno) if error.errno else error}. The chunks are kept: "
            "make room and start again"
        ) from error


def _chunks_folder(folder: Path) -> Path:
    """`folder` itself if it holds chunks, else the one folder of chunks in it."""
    if (folder / MANIFEST).exists():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*_tokens/{MANIFEST}"))
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{folder}: expected a folder of chunks or the folder of a tokenized text, found "
        + (
            f"{len(found)} folders of chunks in it: give one of {', '.join(path.name for path in found)}"
            if found
            else f"no {MANIFEST}: run tokenize_folder first"
        )
    )


def _documents(folder: Path, rows: list[Row], identity: str) -> np.ndarray | None:
    """The tokens with which documents begin, ascending; None where no text is divided. A text that is not is one."""
    if all(row.documents is None for row in rows):
        return None
    found, tokens = [], 0
    for number, row in enumerate(rows):
        if row.documents is not None:
            path = _chunk(folder, number)
            here = _read(path, row, identity, "documents", row.documents_crc32)
            if np.any(here[1:] <= here[:-1]) or np.any(here >= row.tokens):
                raise damaged(path)
            found.append(here + np.uint64(tokens))
        elif row.start == 0:
            found.append(np.array([tokens], dtype=np.uint64))
        tokens += row.tokens
    return np.concatenate(found)


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"chunk_{number:06d}.pt"


def _read(path: Path, row: Row, identity: str, name: str, crc32: int | None) -> np.ndarray:
    """An array of a chunk's file. Raises UserError unless it is there and is what the manifest says."""
    try:
        chunk = read_chunk(path, name)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {AGAIN}") from None
    except OSError as error:
        raise UserError(f"{describe_os_error(error)}; nothing is lost: once it can be read, start again") from error
    except MemoryError as error:
        raise UserError(f"{path}: no memory is left to read it; nothing is lost: start again when there is") from error
    array = getattr(chunk, name)
    if chunk.job != identity or chunk.row() != row or zlib.crc32(array.data) != crc32:
        raise damaged(path)
    return array


def read_ahead(read: Callable[[tuple[int, Row]], np.ndarray], items: Iterable[tuple[int, Row]]) -> Iterator[np.ndarray]:
    """`read` of each item in turn, by threads that are READERS ahead: checksums cost as much as the disk."""
    running: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(READERS) as threads:
        for item in items:
            if len(running) == READERS:
                yield running.popleft().result()
            running.append(threads.submit(read, item))
        while running:
            yield running.popleft().result()


def joined_crc32(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two stretches of bytes, one after the other, from the CRC-32 of each and the length of the second.

    Appending n bytes multiplies a CRC, a polynomial over GF(2), by x^8n. As in zlib, bit 31 is the coefficient of x^0.
    """
    power, square = 1 << 31, 1 << 23  # x^0; x^8, one byte
    while second_bytes:
        if second_bytes & 1:
            power = _times(power, square)
        square = _times(square, square)
        second_bytes >>= 1
    return _times(power, first) ^ second


def _times(one: int, other: int) -> int:
    """The product of two polynomials modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xEDB88320 if other & 1 else 0)
    return product


def summary(h5_path: Path, toki: Tokenizer) -> str:
    """What a finished .h5 holds, in a few lines: sizes, bytes a token, share of the vocabulary used, a decoded snippet
    from the middle."""
    token_file = open_tokens(h5_path)
    assert token_file.text_bytes is not None  # make_h5 says it
    count = len(token_file.tokens)
    used = np.zeros(toki.vocab_size, dtype=bool)
    for block in token_file.blocks("counting the ids that are used"):
        used[block] = True
    middle = max(0, count // 2 - SNIPPET_TOKENS // 2)
    snippet = toki.backend.decode(
        token_file.tokens[middle : middle + SNIPPET_TOKENS].tolist(), skip_special_tokens=False
    )
    return (
        f"{h5_path}: {readable(h5_path.stat().st_size)}\n"
        f"  text         {token_file.text_bytes:,} bytes\n"
        f"  tokens       {count:,} ({token_file.text_bytes / count:.2f} bytes a token)\n"
        f"  vocabulary   {used.sum():,} of {toki.vocab_size:,} ids used ({used.mean():.1%})\n"
        f"  from the middle: {snippet!r}"
    )
