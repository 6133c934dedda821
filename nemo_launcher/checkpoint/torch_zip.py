# SPDX-License-Identifier: Apache-2.0
"""Strict reader of the table of contents in a torch.save zip. Imports no torch.

torch writes entries uncompressed one after the other, and never verifies their checksums. This reader refuses entries
that share a name or bytes or exceed the file, and can verify checksums. Format: PKWARE's APPNOTE 6.3, with its zip64
extension.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_DIRECTORY = 32 << 20
"""The maximum size in bytes of the table of contents: some 300,000 entries."""
_LARGE_16, _LARGE_32 = 0xFFFF, 0xFFFFFFFF


class ZipError(ValueError):
    """The bytes are not a zip as written by torch.save."""


class Source(Protocol):
    """The source of the zip's bytes."""

    def read_at(self, position: int, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end."""

    @property
    def size(self) -> int: ...


@dataclass(slots=True)
class Entry:
    """An entry of a torch.save file's table of contents."""

    name: str
    """Its name, without the archive's folder."""
    size: int
    """The size of its uncompressed content in bytes."""
    crc: int
    """The CRC-32 of its content."""
    header: int
    """The first byte of its local header."""
    stored_name: bytes
    """Its name as stored."""
    limit: int = 0
    """The first byte of the next entry."""


def read_entries(source: Source) -> dict[str, Entry]:
    """Return the entries by name, without their common folder. Raises ZipError."""
    start, size, count = _directory(source)
    if size > _MAX_DIRECTORY:
        raise ZipError(f"the table of contents has {size:,} bytes")
    content = _exactly(source, start, size)
    entries: dict[str, Entry] = {}
    for entry in _parsed(content, count):
        if entry.name in entries:
            raise ZipError(f"the entry {entry.name!r} occurs twice")
        entries[entry.name] = entry
    limit = start
    for entry in sorted(entries.values(), key=lambda entry: entry.header, reverse=True):
        entry.limit, limit = limit, entry.header
        if entry.header + entry.size > entry.limit:
            raise ZipError(f"the entry {entry.name!r} exceeds the file or overlaps another")
    return entries


def data_offset(source: Source, entry: Entry) -> int:
    """Return the start of an entry's content. Raises ZipError if its local header contradicts the table of contents."""
    header = _LOCAL.unpack(_exactly(source, entry.header, _LOCAL.size))
    name = _exactly(source, entry.header + _LOCAL.size, header[-2])
    offset: int = entry.header + _LOCAL.size + header[-2] + header[-1]
    if header[0] != b"PK\3\4" or name != entry.stored_name or header[3] != 0:
        raise ZipError(f"the entry {entry.name!r} has a header that contradicts the table of contents")
    if offset + entry.size > entry.limit:
        raise ZipError(f"the entry {entry.name!r} exceeds the file or overlaps another")
    return offset


def read_entry(source: Source, entry: Entry, limit: int) -> bytes:
    """Return an entry's content after verifying its checksum. Raises ZipError, also for more than `limit` bytes."""
    if entry.size > limit:
        raise ZipError(f"the entry {entry.name!r} has {entry.size:,} bytes")
    content = _exactly(source, data_offset(source, entry), entry.size)
    check_crc(entry, content)
    return content


def check_crc(entry: Entry, content: bytes | memoryview) -> None:
    """Raise ZipError if the content does not have the entry's checksum."""
    if zlib.crc32(content) != entry.crc:
        raise ZipError(f"the checksum of {entry.name!r} is wrong: the file was changed or damaged")


def _exactly(source: Source, position: int, size: int) -> bytes:
    if position < 0 or position + size > source.size:
        raise ZipError("an entry exceeds the file")
    return source.read_at(position, size)


def _directory(source: Source) -> tuple[int, int, int]:
    """Return the start of the table of contents, its size in bytes and its number of entries."""
    if source.size < _END.size:
        raise ZipError("it is not a zip of torch.save")
    position = source.size - _END.size
    magic, disk, first, here, count, size, start, comment = _END.unpack(_exactly(source, position, _END.size))
    if magic != b"PK\5\6" or comment:
        raise ZipError("it is truncated, or not a zip of torch.save")
    located = position >= _LOCATOR.size and source.read_at(position - _LOCATOR.size, 4) == b"PK\6\7"
    if located:
        _, _, where, _ = _LOCATOR.unpack(_exactly(source, position - _LOCATOR.size, _LOCATOR.size))
        magic, *_, disk, first, here, count, size, start = _END_64.unpack(_exactly(source, where, _END_64.size))
        if magic != b"PK\6\6":
            raise ZipError("a damaged table of contents")
        position = where
    elif _LARGE_16 in (here, count) or _LARGE_32 in (size, start):
        raise ZipError("a damaged table of contents")
    if disk or first or here != count or start + size != position:
        raise ZipError("a damaged table of contents")
    return start, size, count


def _parsed(content: bytes, count: int) -> Iterator[Entry]:
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(content):
            raise ZipError("a damaged table of contents")
        field = _CENTRAL.unpack_from(content, position)
        magic, flags, method, crc, packed, size = field[0], field[3], field[4], field[7], field[8], field[9]
        lengths, header = field[10:13], field[16]
        name = content[position + _CENTRAL.size : position + _CENTRAL.size + lengths[0]]
        extra_at = position + _CENTRAL.size + lengths[0]
        extra = content[extra_at : extra_at + lengths[1]]
        position += _CENTRAL.size + sum(lengths)
        if magic != b"PK\1\2" or position > len(content):
            raise ZipError("a damaged table of contents")
        size, packed, header = _large(extra, size, packed, header)
        if method != 0 or packed != size or flags & 1:
            raise ZipError("its entries are not stored like those of torch.save")
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise ZipError("an entry whose name is not text") from None
        yield Entry(text.partition("/")[2], size, crc, header, name)
    if position != len(content):
        raise ZipError("a damaged table of contents")


def _large(extra: bytes, *values: int) -> list[int]:
    """Return the values, with those that have all bits set replaced from the zip64 extra field."""
    found = list(values)
    if _LARGE_32 not in values:
        return found
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            numbers = extra[position + 4 : position + 4 + length]
            for index, value in enumerate(found):
                if value == _LARGE_32:
                    if len(numbers) < 8:
                        break
                    found[index], numbers = int.from_bytes(numbers[:8], "little"), numbers[8:]
            return found
        position += 4 + length
    return found
