"""Reading `torch.save` files where they lie: tensors are mapped into memory, nothing is executed, nothing is copied.

torch.load maps only whole files, and weights_only still builds whatever its allow-list grows to. A `.nemo` archive is a
plain tar, so a weight file inside it can be mapped at its offset: each process reads the pages it needs, once.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.errors import Problem, UserError

_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip member; the last two are the lengths of name and extra field


# What zipfile, pickle, mmap and torch raise on bytes that torch.save never wrote.
_DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


def read_tensors(archive: Archive, name: str) -> dict[str, Any]:
    """Return the dictionary a `torch.save` member holds, its tensors mapped copy-on-write.

    Raises UserError when the member is absent, damaged, or holds anything but tensors by name, or dictionaries of them.
    """
    path, offset = archive.locate(name)
    try:
        with path.open("rb") as stream:
            value = _read(stream, path, offset, archive.size(name))
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(Problem(f"{archive.path}: {name}", f"cannot be read: {reason}", "copy it again")) from error
    strange = _strange(value)
    if strange is not None:
        raise UserError(Problem(f"{archive.path}: {name}", f"is not a dictionary of tensors: it holds {strange}"))
    return value


def _strange(value: Any) -> str | None:
    """Name something that is neither a tensor by name nor a dictionary of such; None when there is nothing."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    for key, item in value.items():
        if not isinstance(key, str):
            return f"the key {key!r}"
        found = None if isinstance(item, Tensor) else _strange(item)
        if found is not None:
            return f"{found} as {key!r}"
    return None


def _read(stream: IO[bytes], path: Path, offset: int, size: int) -> Any:
    """Unpickle the member of `size` bytes at `offset`; torch.save writes a zip with one entry a storage."""
    window = _Window(stream, offset, size)
    with zipfile.ZipFile(window) as entries:
        infos = {info.filename.partition("/")[2]: info for info in entries.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED or info.file_size > size for info in infos.values()):
            raise zipfile.BadZipFile("its entries are not stored as torch.save does")
        order = entries.read(infos["byteorder"]) if "byteorder" in infos else b"little"
        if order.decode() != sys.byteorder:
            raise pickle.UnpicklingError(f"written on a {order.decode()}-endian machine")

        def storage(key: str, dtype: torch.dtype) -> Tensor:
            info = infos[f"data/{key}"]
            window.seek(info.header_offset)
            header = _LOCAL_HEADER.unpack(window.read(_LOCAL_HEADER.size))
            start = offset + info.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
            if info.file_size == 0:
                return torch.empty(0, dtype=dtype)
            mapped = np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(info.file_size,))
            return torch.from_numpy(mapped).view(dtype)

        return _Unpickler(io.BytesIO(entries.read(infos["data.pkl"])), storage).load()


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other name in the pickle is refused."""

    def __init__(self, stream: IO[bytes], storage: Callable[[str, torch.dtype], Tensor]) -> None:
        super().__init__(stream)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGE_TYPES:
            return _STORAGE_TYPES[name]
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no tensor; it is not executed")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, _ = pid
        return self._storage(key, dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


class _Window:
    """A seekable view of part of a file, so that zipfile sees the member alone."""

    def __init__(self, stream: IO[bytes], offset: int, size: int) -> None:
        self._stream, self._offset, self._size, self._position = stream, offset, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + position
        if self._position < 0:
            raise ValueError("an entry lies before the beginning")
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._position
        self._stream.seek(self._offset + self._position)
        data = self._stream.read(left if count < 0 else min(count, left))
        self._position += len(data)
        return data
