# SPDX-License-Identifier: Apache-2.0
"""A memory-mapped file of hidden states: a table, [rows, width], then JSON with its sizes, then a footer.

The rows are those of data.token_rows. Ranks and threads write disjoint rows of one file under a temporary name.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.files.mapped import map_bytes
from nemo_launcher.megatron.transfer import on_device

FORMAT = 1
"""The version of files; part of their names."""

_FOOTER = struct.Struct("<8sQI")  # magic, bytes of JSON, its checksum
_MAGIC = b"NLHIDDN\0"
_DESCRIPTION_BYTES = 256
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_ROWS_AT_ONCE = 1 << 12
"""Rows that are read at a time to compute the checksum."""


class DamagedHiddenFileError(Exception):
    """A file of hidden states is damaged or incomplete."""


@dataclass(frozen=True, slots=True)
class TableShape:
    """The shape of the table."""

    rows: int
    """The number of rows."""
    width: int
    """The number of values in a row: the hidden size."""
    dtype: torch.dtype
    """Of the values."""

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return self.width * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """The size of the table."""
        return self.rows * self.row_bytes

    @property
    def file_bytes(self) -> int:
        """The size of the whole file."""
        return self.num_bytes + _DESCRIPTION_BYTES + _FOOTER.size


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """The hidden states of a packed row of tokens, read when they are needed."""

    path: Path
    """The file."""
    layer: int
    """The layer that they enter, counted from 0."""
    index: Tensor
    """The row in the file of each token, [s]."""

    def read(self, device: torch.device) -> Tensor:
        """Return the hidden states, [s, 1, hidden]. Raises UserError like `keep_mapped`."""
        if self.path not in _mapped:
            keep_mapped(self.path)
        return on_device(_mapped[self.path][self.index], device)[:, None]


_mapped: dict[Path, Tensor] = {}
"""The table of each file that this process trains from."""


def keep_mapped(path: Path) -> None:
    """Map a file's table for HiddenRows.read; whoever removes the file later takes nothing away.

    Raises UserError if the file was damaged or removed since it was found or written.
    """
    try:
        _mapped[path] = open_table(path, verify=False)
    except (DamagedHiddenFileError, OSError):
        what = "these hidden states were removed or damaged while the job was using them"
        raise UserError(Problem(str(path), what, "start the job again: it computes them again")) from None


def open_table(path: Path, shape: TableShape | None = None, *, verify: bool) -> Tensor:
    """Map a file's table, [rows, width].

    shape: the expected one, or None; verify: read the table once to verify its checksum. Raises OSError if the file
    cannot be opened, and DamagedHiddenFileError if it is damaged, incomplete or of another shape.
    """
    _require(path.is_file() or not path.exists())  # opening a pipe would block
    try:
        found, checksum = _read_description(path)
        _require(shape is None or found == shape)
        table = _map(path, found)
    except (UserError, KeyError, TypeError, ValueError, struct.error) as error:
        raise DamagedHiddenFileError(str(path)) from error
    if verify:
        _require(_checksum(table) == checksum)
    return table


def _map(path: Path, shape: TableShape) -> Tensor:
    values = torch.from_numpy(map_bytes(path, 0, shape.num_bytes))
    return values.view(shape.dtype).view(shape.rows, shape.width)


def _read_description(path: Path) -> tuple[TableShape, int]:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - _FOOTER.size
        _require(end >= 0)
        file.seek(end)
        magic, size, checksum = _FOOTER.unpack(file.read(_FOOTER.size))
        _require(magic == _MAGIC and size == min(end, _DESCRIPTION_BYTES))
        file.seek(end - size)
        text = file.read(size)
    _require(zlib.crc32(text) == checksum)
    content = parse_json(text, str(path))
    shape = TableShape(content["rows"], content["width"], _DTYPES[content["dtype"]])
    _require(shape.num_bytes == end - size)
    return shape, int(content["checksum"])


def _require(holds: bool) -> None:
    if not holds:
        raise DamagedHiddenFileError


# --- writing ----------------------------------------------------------------------------------------------------


class TableWriter:
    """Writes rows of a table under its temporary name, from any thread of any rank."""

    def __init__(self, path: Path, shape: TableShape) -> None:
        self._shape = shape
        self._descriptor = os.open(path, os.O_RDWR)

    def write(self, start: int, rows: Tensor) -> int:
        """Write rows, [n, width], from row `start` on; return their checksum. Raises OSError.

        The checksums of all writers add up to that of the table.
        """
        rows = rows.detach().to("cpu", self._shape.dtype).contiguous()
        content = memoryview(rows.view(torch.uint8).numpy().tobytes())
        offset = start * self._shape.row_bytes
        while content:
            written = os.pwrite(self._descriptor, content, offset)
            content, offset = content[written:], offset + written
        return checksum_of(start, rows)

    def close(self) -> None:
        """Flush what was written to the disk, where other ranks see it."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def allocate(path: Path, shape: TableShape) -> None:
    """Reserve the disk space of a file. Raises OSError if there is not enough."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if shape.num_bytes:
            os.posix_fallocate(descriptor, 0, shape.num_bytes)
    finally:
        os.close(descriptor)


def finish(path: Path, shape: TableShape, checksum: int) -> None:
    """Complete a file whose rows are all written. checksum: the sum of the writers' checksums.

    Raises DamagedHiddenFileError if the table is not what the writers wrote, and OSError.
    """
    checksum %= _MODULUS
    _require(_checksum(_map(path, shape)) == checksum)
    content = {"rows": shape.rows, "width": shape.width, "dtype": str(shape.dtype), "checksum": checksum}
    text = json.dumps(content).encode().ljust(_DESCRIPTION_BYTES)
    with path.open("ab") as file:
        file.write(text + _FOOTER.pack(_MAGIC, len(text), zlib.crc32(text)))


# --- checksums --------------------------------------------------------------------------------------------------

_MODULUS = 1 << 63


def checksum_of(start: int, rows: Tensor) -> int:
    """Return the checksum of rows, [n, width], from row `start` on: it depends on each value and on its row.

    The checksums of parts add up to that of the table (modulo 2**63), in any order.
    """
    bits = rows.view({2: torch.int16, 4: torch.int32}[rows.dtype.itemsize])
    sums = bits.sum(1, dtype=torch.int64)
    numbers = torch.arange(start + 1, start + 1 + len(rows))
    return int((sums * numbers).sum()) % _MODULUS


def _checksum(table: Tensor) -> int:
    parts = table.split(_ROWS_AT_ONCE)
    return sum(checksum_of(number * _ROWS_AT_ONCE, part) for number, part in enumerate(parts)) % _MODULUS
