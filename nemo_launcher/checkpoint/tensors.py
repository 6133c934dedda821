# SPDX-License-Identifier: Apache-2.0
"""Reader of `torch.save` files in place: tensors are memory-mapped, and nothing is executed or copied.

torch.load can only map whole files, and its weights_only mode builds all types of a growing allow-list. A `.nemo`
archive is a plain tar, so a weight file in it can be mapped at its offset, and each process reads only the pages it
needs.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_launcher.checkpoint import restricted_pickle
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.restricted_pickle import PickleError
from nemo_launcher.checkpoint.torch_zip import Entry, ZipError, check_crc, data_offset, read_entries, read_entry
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.mapped import map_bytes, release_pages

STORAGE_TYPES = {
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
CHECKED_BYTES = 512 << 20
"""All checksums of files up to this size are verified; in larger files only that of the pickle."""
_MAX_SIZE = 1 << 40
_MAX_DIMENSIONS = 8
_MAX_NAME = 500
_MAX_NESTING = 4  # of dictionaries; adapters have two levels


# Errors that the readers, mmap and torch raise for malformed files.
_DAMAGED = (PickleError, ZipError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)


StateDict: TypeAlias = "dict[str, Tensor | StateDict]"
"""Tensors by name, and nested dictionaries of them."""


class Opaque:
    """A value that is not built, such as the extra state of Transformer Engine's layers."""


def read_tensors(archive: Archive, name: str) -> StateDict:
    """Return the dictionary in a `torch.save` member, with tensors mapped copy-on-write.

    Raises UserError if the member is missing or damaged, or holds anything other than tensors by name, or dictionaries
    of them.
    """
    path, offset = archive.locate(name)
    return _dictionary(Region(path, offset, archive.size(name)), f"{archive.path}: {name}")


def read_weight_file(path: Path) -> StateDict:
    """Return the dictionary in a `torch.save` file. Raises UserError like `read_tensors`."""
    return _dictionary(Region(path, 0, path.stat().st_size), str(path))


@dataclass(frozen=True)
class Region:
    """A mapped range of a file."""

    path: Path
    """The file."""
    offset: int
    """The first byte."""
    size: int
    """The number of bytes."""

    @cached_property
    def mapped(self) -> NDArray[np.uint8]:
        """The bytes, [size], mapped copy-on-write. Raises UserError if the file has become shorter."""
        return map_bytes(self.path, self.offset, self.size)

    def read_at(self, position: int, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        return self.mapped[position : position + size].tobytes()


def readable_tensor(region: Region, source: str, *, check: bool) -> Tensor:
    """Return the single tensor in a torch.save file, mapped; check: verify its checksum. Raises UserError."""
    try:
        value = _read_saved(region, check=check)
    except _DAMAGED as error:
        raise UserError(_unreadable(error, source)) from error
    if not isinstance(value, Tensor):
        raise UserError(Problem(source, f"holds a {type(value).__name__}, not a tensor", "copy it again"))
    return value


def _unreadable(error: Exception, source: str) -> Problem:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Problem(source, f"cannot be read: {reason[:300]}", "copy it again")


def _read_saved(region: Region, *, check: bool) -> object:
    """Return the content of a torch.save file: tensors in plain containers. Raises the exceptions in _DAMAGED."""
    if region.size and region.read_at(0, 1) == b"\x80":
        raise PickleError("it has the format of torch before 1.6: load it with torch and save it again")
    entries = read_entries(region) if region.size else {}
    if "data.pkl" not in entries:
        raise ZipError("it is not a torch.save file" if region.size else "it is empty")
    order = read_entry(region, entries["byteorder"], 16) if "byteorder" in entries else b"little"
    if order.decode(errors="replace") != sys.byteorder:
        raise PickleError(f"written on a {order.decode(errors='replace')}-endian machine")
    storages = _Storages(region, entries, check)
    data = read_entry(region, entries["data.pkl"], restricted_pickle.MAX_BYTES)
    return restricted_pickle.loads(data, _find, storages.by_id)


def _dictionary(region: Region, source: str) -> StateDict:
    try:
        value = _read_saved(region, check=region.size <= CHECKED_BYTES)
        odd, tensor_bytes = _find_unexpected(value) if isinstance(value, dict) else (f"a {type(value).__name__}", 0)
        if tensor_bytes > 4 * region.size + (1 << 20):
            raise PickleError(f"its tensors have {tensor_bytes:,} bytes, but the file {region.size:,}")
    except _DAMAGED as error:
        raise UserError(_unreadable(error, source)) from error
    if odd is not None or not isinstance(value, dict):
        raise UserError(
            Problem(source, f"is not a dictionary of tensors: it holds {odd}", "give the path of a checkpoint")
        )
    return value


def _find_unexpected(value: dict[object, object]) -> tuple[str | None, int]:
    """Return something other than tensors by name and dictionaries of them, or None, and the bytes of all tensors.

    Values without use, such as the extra state of Transformer Engine's layers, are removed.
    """
    waiting, seen, total = [(value, 1)], {id(value)}, 0
    while waiting:
        here, depth = waiting.pop()
        for key, item in list(here.items()):
            if not isinstance(key, str):
                return f"the key {str(key)[:60] if isinstance(key, (int, float)) else type(key).__name__}", total
            if len(key) > _MAX_NAME or not key.isprintable():
                return f"the name {key[:60]!r}", total
            if isinstance(item, Tensor):
                total += item.nbytes
            elif key.endswith("_extra_state") and (item is None or isinstance(item, Opaque)):
                del here[key]
            elif not isinstance(item, dict):
                return f"a {type(item).__name__} as {key[:100]!r}", total
            elif item is value or depth == _MAX_NESTING:
                return f"dictionaries in dictionaries in {key[:100]!r}", total
            elif id(item) not in seen:
                seen.add(id(item))
                waiting.append((item, depth + 1))
    return None, total


class _Storages:
    """The storages of a file, each mapped once."""

    def __init__(self, region: Region, entries: dict[str, Entry], check: bool) -> None:
        self._region, self._entries, self._check = region, entries, check
        self._bytes: dict[str, Tensor] = {}

    def by_id(self, pid: object) -> Tensor:
        """Return the storage of a persistent id ('storage', type, key, location, count), as a flat tensor."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[2], str):
            raise PickleError("a reference to something other than a storage")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype) or not _is_size(count):
            raise PickleError("a storage without type or size")
        entry = self._entries.get(f"data/{key}")
        if entry is None:
            raise PickleError(f"the storage {key[:40]!r} is absent")
        if entry.size != count * dtype.itemsize:
            raise PickleError(f"the storage {key[:40]!r} has {entry.size:,} bytes, out of bounds for {count:,} values")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if key not in self._bytes:
            self._bytes[key] = self._mapped(entry)
        return self._bytes[key].view(dtype)

    def _mapped(self, entry: Entry) -> Tensor:
        start = data_offset(self._region, entry)
        mapped = self._region.mapped[start : start + entry.size]
        if self._check:
            check_crc(entry, mapped.data)
            release_pages(mapped.ctypes.data, entry.size)  # not all of the file is in memory at a time
        return torch.from_numpy(mapped)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_is_size, value))


def _find(module: str, name: str) -> object:
    """Return the value of a name in a pickle. Raises PickleError for names other than those of tensors."""
    if module == "torch" and name in STORAGE_TYPES:
        return STORAGE_TYPES[name]
    found = _NAMES.get((module, name))
    if found is None:
        raise PickleError(f"holds {module[:100]}.{name[:100]}, which is not a tensor; it is not executed")
    return found


def _rebuild_tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object = None,
    _hooks: object = None,
    marks: object = None,
) -> Tensor:
    """Return a view of a storage, within its bounds; marks: torch's flags for negated or conjugated values."""
    if marks:
        raise PickleError("a tensor with negated or conjugated values")
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise PickleError("a malformed tensor")
    if not (_are_sizes(size) and _are_sizes(stride) and _is_size(offset) and len(size) == len(stride)):
        raise PickleError("a tensor with a malformed shape")
    if len(size) > _MAX_DIMENSIONS:
        raise PickleError("a tensor with a malformed shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count and (last >= storage.numel() or count > storage.numel()):
        raise PickleError("a tensor out of bounds of its storage")
    if count == 0:
        return storage.new_empty(size)
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(tensor: object, *_: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise PickleError("a parameter that is not a tensor")
    return tensor


def _ordered_dict(*items: object) -> OrderedDict[object, object]:
    if items:
        raise PickleError("a malformed OrderedDict")
    return OrderedDict()


def _opaque(*_: object) -> Opaque:
    return Opaque()


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("_io", "BytesIO"): _opaque,
    ("_codecs", "encode"): _opaque,
}
