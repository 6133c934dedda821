# SPDX-License-Identifier: Apache-2.0
"""Strict reader of a tar's table of contents: only regular files and folders, with sizes checked against the file.

The standard library's tarfile follows links, reads sparse members and allocates as much memory as a header claims.
Checkpoints need none of these. Format: POSIX.1-2001 (ustar and pax), and GNU tar's long names and large sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import name_problem, name_problems

BLOCK = 512
MAX_MEMBERS = 20_000
"""The maximum number of members; a distributed checkpoint of 1,024 ranks has 2,048 weight files."""
_MAX_EXTENSION = 1 << 20
"""The maximum size in bytes of an extended header with names and sizes; usually some hundred."""
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "a part of a larger archive",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    """Its name."""
    size: int
    """The size of its content in bytes."""
    offset: int
    """The first byte of its content in the tar."""


class Source(Protocol):
    """A stream that holds a tar."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seekable(self) -> bool: ...
    def seek(self, position: int, whence: int = 0, /) -> int: ...


class Damaged(ValueError):
    """The bytes are not a tar, or are incomplete."""


class Reader:
    """Reads a tar once, from start to end.

    stream: read only in order. limit: the maximum size of the tar in bytes; headers that claim more are refused.
    """

    def __init__(self, stream: Source, source: str, limit: int) -> None:
        self._stream, self._source, self._limit = stream, source, limit
        self._position = 0
        self._seen = 0

    def members(self) -> Iterator[Member]:
        """Yield the regular files, each before its content is skipped, so that the caller may `take` it.

        Raises Damaged, and UserError for other kinds of members and for unsafe names.
        """
        extension: dict[str, str] = {}
        while (header := self._header()) is not None:
            kind, name, size = header
            if kind in (b"x", b"g", b"L", b"K"):
                extension |= self._extension(kind, size)
                continue
            name = extension.get("path", name)
            if "size" in extension:
                size = _number(extension["size"])
            if any(key.startswith("GNU.sparse") for key in extension):
                kind = b"S"
            extension = {}
            self._seen += 1
            if self._seen > MAX_MEMBERS:
                what = f"holds more than {MAX_MEMBERS:,} files, which no supported checkpoint has"
                raise UserError(Problem(self._source, what, "use another checkpoint"))
            if kind == b"5" or (kind == b"0" and name.endswith("/")):
                self._check_folder(name)
                self.skip(_padded(size))
                continue
            if kind not in (b"0", b"7"):
                what = f"is {_KINDS.get(kind, 'not a regular file')}, which is not followed; the archive is refused"
                fix = "copy or convert it again, as regular files"
                shown = plain(name) if name.isprintable() else repr(plain(name))
                raise UserError(Problem(f"{self._source}: {shown[:200]}", what, fix))
            member = Member(plain(name), size, self._position)
            if self._position + size > self._limit:
                raise Damaged(f"{member.name[:200]!r} should have {size:,} bytes, but the file ends before")
            yield member
            self.skip(member.offset + size - self._position)
            self.skip(-size % BLOCK)

    def take(self, size: int) -> bytes:
        """Return the next bytes. Raises Damaged if there are fewer."""
        content = self._stream.read(size)
        self._position += len(content)
        if len(content) < size:
            raise Damaged("unexpected end of data")
        return content

    def skip(self, size: int) -> None:
        """Skip bytes. Raises Damaged if there are fewer."""
        if self._stream.seekable() and self._position + size <= self._limit:
            self._stream.seek(size, 1)
            self._position += size
            return
        while size > 0:
            read = len(self._stream.read(min(size, 1 << 20)))
            self._position += read
            size -= read
            if not read:
                raise Damaged("unexpected end of data")

    def _header(self) -> tuple[bytes, str, int] | None:
        """Return kind, name and size of the next header, or None at the end."""
        block = self._stream.read(BLOCK)
        self._position += len(block)
        if len(block) < BLOCK:  # a complete tar ends with empty blocks
            raise Damaged("unexpected end of data" if self._position else "it is empty")
        if not any(block):
            if not self._seen:
                raise Damaged("it has no members")
            return None
        sums = sum(block[:148]) + 8 * 32 + sum(block[156:])
        if _octal(block[148:156]) != sums:
            raise Damaged("bad checksum" if self._seen else "not a tar")
        kind = block[156:157]
        name = _text(block[:100])
        prefix = _text(block[345:500])
        if prefix and block[257:262] == b"ustar" and block[263:265] == b"00":
            name = f"{prefix}/{name}"
        size = int.from_bytes(block[125:136], "big") if block[124] == 0x80 else _octal(block[124:136])
        return (b"0" if kind == b"\0" else kind), name, size

    def _extension(self, kind: bytes, size: int) -> dict[str, str]:
        """Return the values in a pax header or a GNU long name."""
        if size > _MAX_EXTENSION:
            raise Damaged(f"an extended header of {size:,} bytes")
        content = self.take(size)
        self.skip(-size % BLOCK)
        if kind in (b"L", b"K"):
            return {"path": _text(content)} if kind == b"L" else {}
        values = dict(_records(content))
        # Global headers are ignored: NeMo's hold only comments.
        return values if kind == b"x" else {}

    def _check_folder(self, name: str) -> None:
        stem = plain(name).rstrip("/")
        if stem not in ("", ".") and name_problem(stem) is not None:
            raise UserError(Problem(f"{self._source}: {stem!r}", f"{name_problem(stem)}; the archive is refused"))


def check_names(names: list[str], source: str) -> None:
    """Raise UserError for unsafe names, duplicate names, and files that are also folders."""
    problems = name_problems(names, source)
    known = set(names)
    for name in names if not problems else ():
        parts = name.split("/")
        above = ("/".join(parts[:count]) for count in range(1, len(parts)))
        if any(folder in known for folder in above):
            problems.append(
                Problem(f"{source}: {name[:200]!r}", "is in a folder that is also a file; the archive is refused")
            )
    if problems:
        raise UserError(problems[:10])


def plain(name: str) -> str:
    """Return a member's name without one leading `./`, which tar programs write."""
    return name.removeprefix("./")


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="surrogateescape")


def _octal(field: bytes) -> int:
    digits = field.strip(b"\0 ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise Damaged("a header with a malformed number")
    return int(digits, 8)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Damaged(f"a size of {text[:40]!r}")
    return int(text)


def _records(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the `length key=value` records of a pax header."""
    position = 0
    while position < len(content) and content[position]:
        digits, space, _ = content[position : position + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise Damaged("an extended header that cannot be read")
        end = position + int(digits)
        key, equals, value = content[position + len(digits) + 1 : end].partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise Damaged("an extended header that cannot be read")
        yield key.decode("utf-8", errors="replace"), value[:-1].decode("utf-8", errors="surrogateescape")
        position = end
