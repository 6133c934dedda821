# SPDX-License-Identifier: Apache-2.0
"""Writer of `torch.save` files tensor by tensor, for weights that do not fit into memory together.

torch.save needs all tensors at once. The file is a zip of stored entries: a pickle that names tensors, and a record of
bytes for each. Format: torch/serialization.py, `_save`, PyTorch 2.13; checkpoint.torch_zip reads it.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from nemo_launcher.checkpoint.tensors import STORAGE_TYPES

_FOLDER = "archive"
_ALIGNMENT = 64
"""Bytes; a record begins at a multiple of it in the file, so that it can be mapped."""
_PADDING = struct.Struct("<2H")
_PADDING_ID = 0x4246
"""The id of the zip's extra field with padding, as torch writes it."""
_HEADER_BYTES, _ZIP64_BYTES, _ZIP64_FROM = 30, 20, 2**31 - 1
_NAMES = {dtype: name for name, dtype in STORAGE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class _Storage:
    """What a pickle says about the bytes of a tensor."""

    dtype: torch.dtype
    """The type of its values."""
    key: str
    """The name of its record below `data/`."""
    numel: int
    """The number of its values."""


class _Named:
    """Pickled as a tensor of a storage."""

    def __init__(self, tensor: Tensor, key: str) -> None:
        rebuild, (_, _, *rest) = tensor.__reduce_ex__(2)
        arguments = (_Storage(tensor.dtype, key, tensor.numel()), 0, *rest)
        self._reduced: tuple[Callable[..., Any], tuple[Any, ...]] = (rebuild, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if not isinstance(value, _Storage):
            return None
        return "storage", getattr(torch, _NAMES[value.dtype]), value.key, "cpu", value.numel


def write_tensors(stream: IO[bytes], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors by name to a seekable stream; each is contiguous, and is not kept.

    A tensor that comes again directly after itself, under another name, shares its record.
    """
    named: dict[str, _Named] = {}
    last: tuple[Tensor, _Named] | None = None
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        records = 0
        for name, tensor in tensors:
            if last is None or last[0] is not tensor:
                last = None  # frees the previous tensor
                _write(file, stream, f"data/{records}", tensor.reshape(-1).view(torch.uint8).numpy().data)
                last = tensor, _Named(tensor, str(records))
                records += 1
            named[name] = last[1]
        pickled = io.BytesIO()
        _Pickler(pickled, protocol=2).dump(named)
        _write(file, stream, "data.pkl", memoryview(pickled.getvalue()))
        for name, content in (("byteorder", sys.byteorder.encode()), ("version", b"3\n")):
            _write(file, stream, name, memoryview(content))


def _write(file: zipfile.ZipFile, stream: IO[bytes], name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    is_large = content.nbytes >= _ZIP64_FROM
    start = stream.tell() + _HEADER_BYTES + len(info.filename) + _PADDING.size + (_ZIP64_BYTES if is_large else 0)
    padding = -start % _ALIGNMENT
    info.extra = _PADDING.pack(_PADDING_ID, padding) + bytes(padding)
    with file.open(info, "w", force_zip64=is_large) as entry:
        entry.write(content)
