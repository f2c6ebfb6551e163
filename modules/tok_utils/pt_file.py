"""Arrays and numbers in a `.pt` file, as `torch.save` writes it and `torch.load(weights_only=True)` reads it, without
torch.

To import torch takes longer than to tokenize a hundred megabytes. The format is a zip archive of a pickle, which names
the tensors' types and shapes, and of their data, a file each; both have CRC-32 checksums. Of a pickle nothing is run:
it may name what stands in KNOWN and nothing else.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # of the data in the file, in bytes, as torch has it: it maps them
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4"), "uint64": np.dtype("<u8")}


def write_pt(file: io.BytesIO, values: dict[str, int | str | np.ndarray]) -> None:
    """Write a dictionary of integers, strings and 1-D arrays (of DTYPES) as torch would write one of tensors."""
    arrays = [value for value in values.values() if isinstance(value, np.ndarray)]
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", _pickled(values))
        _add(archive, "byteorder", b"little")
        for number, array in enumerate(arrays):
            _add(archive, f"data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")  # it carries no time: the same contents are the same bytes
    assert archive.fp is not None  # it is open
    start = archive.fp.tell() + 30 + len(entry.filename) + 4  # after the entry's header and that of the padding
    padding = -start % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, data)


def _pickled(values: dict[str, int | str | np.ndarray]) -> bytes:
    """The pickle, in protocol 2, written out: to let `pickle` name torch's functions, torch would have to be there."""
    parts, arrays = [b"\x80\x02}("], 0
    for name, value in values.items():
        parts.append(_plain(name))
        if isinstance(value, np.ndarray):
            storage = b"(%sctorch.storage\nUntypedStorage\n%s%s%stQ" % (
                _plain("storage"), _plain(str(arrays)), _plain("cpu"), _plain(value.nbytes)
            )  # fmt: skip
            parts.append(
                b"ctorch._utils\n_rebuild_tensor_v3\n(%s%s%s\x85%s\x85\x89ccollections\nOrderedDict\n)Rctorch\n%s\ntR"
                % (storage, _plain(0), _plain(len(value)), _plain(1), value.dtype.name.encode())
            )
            arrays += 1
        else:
            parts.append(_plain(value))
    return b"".join([*parts, b"u."])


def _plain(value: int | str) -> bytes:
    if isinstance(value, str):
        data = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(data)) + data
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


class Tensor(NamedTuple):
    """A tensor of which the data are not read yet: file `key` in the archive."""

    key: str
    dtype: np.dtype
    size: int


def read_pt(path: Path, arrays: Collection[str]) -> Any:
    """What a `.pt` file holds: those tensors that `arrays` names as arrays, the others as `Tensor`. All that is read is
    compared with its checksum.

    Raises OSError and MemoryError where it cannot be read, and anything else where it is damaged or has other contents
    than plain values and 1-D tensors of DTYPES.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        values = _Unpickler(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
        for name in arrays if isinstance(values, dict) else ():
            if isinstance(values.get(name), Tensor):
                values[name] = _array(archive, root, values[name])
        return values


def _array(archive: zipfile.ZipFile, root: str, tensor: Tensor) -> np.ndarray:
    return np.frombuffer(archive.read(f"{root}/data/{tensor.key}"), dtype=tensor.dtype, count=tensor.size)


def _rebuilt(storage: tuple, offset: int, size: tuple, stride: tuple, _grad, _hooks, dtype: np.dtype) -> Tensor:
    kind, _, key, _, size_bytes = storage
    if kind != "storage" or offset != 0 or len(size) != 1 or tuple(stride) != (1,):
        raise ValueError("expected a tensor of one dimension")
    if size[0] * dtype.itemsize != size_bytes:
        raise ValueError("expected a tensor as large as its data")
    return Tensor(key, dtype, size[0])


KNOWN = {
    ("torch._utils", "_rebuild_tensor_v3"): _rebuilt,
    ("torch.storage", "UntypedStorage"): "UntypedStorage",
    ("collections", "OrderedDict"): OrderedDict,
} | {("torch", name): dtype for name, dtype in DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is nothing that a chunk holds")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> tuple:
        if not isinstance(pid, tuple) or len(pid) != 5:
            raise pickle.UnpicklingError("expected the place of a tensor's data")
        return pid
