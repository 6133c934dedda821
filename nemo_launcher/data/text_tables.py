# SPDX-License-Identifier: Apache-2.0
"""CSV and TSV files, read as a stream of records; errors name file and line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from nemo_launcher.data.jsonl import MAX_LINE_BYTES, bounded_lines
from nemo_launcher.data.printable import printable
from nemo_launcher.data.record_streams import head
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import decode

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""The characters that separate the columns of a .csv file, and their names."""
_HEADER = "write the names of the columns in the first line, such as: taskname,question,answer"
_MAX_COLUMNS = 10_000
_SHOWN_CHARACTERS, _SHOWN_NAMES = 60, 20


def read_table(stream: IO[bytes], source: str, kind: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (number of its first line, record) for each record of a CSV or TSV file; blank lines are skipped.

    kind: `csv`, in which the header tells the delimiter, or `tsv`. The first line has the names of the columns; columns
    without a name are ignored. Values are text, as they stand. Raises UserError for a header without names or with
    a name that occurs twice, a record with more or fewer values, a quote that is misplaced or not closed, text that is
    not UTF-8, and records longer than MAX_LINE_BYTES.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = _delimiter(stream, kind)
    lines = _Lines(stream, source)
    rows = _rows(lines, csv.reader(lines, delimiter=delimiter, strict=True))
    names: Sequence[str] = ()
    for number, row in rows:
        if not row:  # a blank line
            continue
        if not names:
            names = row
            _check_header(names, f"{source}:{number}")
            continue
        if len(row) != len(names):
            what = f"has {_values(len(row))}, but the header has {_values(len(names))}, separated by"
            fix = 'put values with a separator or a line break in double quotes, and write "" for a quote in them'
            raise UserError(Problem(f"{source}:{number}", f"{what} {DELIMITERS[delimiter]}", fix))
        yield number, {name: value for name, value in zip(names, row, strict=True) if name}


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a table, as it is read."""

    delimiter: str
    """The character between columns, one of DELIMITERS."""
    names: tuple[str, ...]
    """The names of the columns that have one."""

    def __str__(self) -> str:
        shown = ", ".join(" ".join(name[:_SHOWN_CHARACTERS].split()) for name in self.names[:_SHOWN_NAMES])
        more = ", ..." if len(self.names) > _SHOWN_NAMES else ""
        return printable(f"columns separated by {DELIMITERS[self.delimiter]}: {shown}{more}")


def header_of(stream: IO[bytes], source: str, kind: str) -> Header | None:
    """Return the header of a CSV or TSV file; None if it has none. Raises UserError as `read_table` does."""
    delimiter = _delimiter(stream, kind)
    lines = _Lines(stream, source)
    rows = (row for _, row in _rows(lines, csv.reader(lines, delimiter=delimiter, strict=True)) if row)
    names = next(rows, None)
    return None if names is None else Header(delimiter, tuple(filter(None, names)))


def delimiter_of(start: bytes) -> str:
    """Return the delimiter of a CSV file, from its first bytes: the one that gives the header the most columns."""
    header = start.decode("utf-8-sig", errors="replace").replace("\r", "\n").lstrip("\n").partition("\n")[0]
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _delimiter(stream: IO[bytes], kind: str) -> str:
    return "\t" if kind == "tsv" else delimiter_of(head(stream))


class _Lines:
    """The decoded lines of a file for csv.reader, counted; a record may not have more than MAX_LINE_BYTES."""

    def __init__(self, stream: IO[bytes], source: str) -> None:
        self._lines, self.source = bounded_lines(stream, source), source
        self.first = 1
        """The first line of the present record."""
        self.number = 0
        """The last line that was read."""
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._size += len(line)
        if self._size > MAX_LINE_BYTES:
            what = f"the record that starts here has more than {MAX_LINE_BYTES:,} bytes"
            raise UserError(Problem(f"{self.source}:{self.first}", what, "close its double quote"))
        text = decode(line, f"{self.source}:{self.number}")
        return text if self.number == 1 else text.removeprefix("\ufeff")

    def next_record(self) -> None:
        """Note that the next line starts a record."""
        self.first, self._size = self.number + 1, 0


def _rows(lines: _Lines, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the values of each record."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(Problem(f"{lines.source}:{lines.first}", *_mistake(str(error)))) from None
        if row is None:
            return
        yield lines.first, row
        lines.next_record()


def _mistake(error: str) -> tuple[str, str]:
    """Return what is wrong and its repair, for a message of csv.reader."""
    if "unexpected end of data" in error:
        return "a double quote that opens here is not closed", 'close it, and write "" for a quote in a value'
    if "expected after" in error:
        return "text follows a closing double quote", 'put the whole value in double quotes, and write "" for a quote'
    if "new-line" in error:
        return "has a carriage return inside a value", "end lines with \\n or \\r\\n: tr '\\r' '\\n' < FILE > NEW"
    return f"is not a record: {error}", _HEADER


def _check_header(names: Sequence[str], where: str) -> None:
    fix = _HEADER
    if len(names) > _MAX_COLUMNS:
        raise UserError(Problem(where, f"the header has {len(names):,} columns", fix))
    if not any(name.strip() for name in names):
        raise UserError(Problem(where, "the header has no names", fix))
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        what = f"the column {twice[:_SHOWN_CHARACTERS]!r} occurs twice in the header"
        raise UserError(Problem(where, what, "rename one of them"))


def _values(count: int) -> str:
    return f"{count:,} value{'s' if count != 1 else ''}"
