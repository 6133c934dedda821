# SPDX-License-Identifier: Apache-2.0
"""The only reader of data files: a stream of (place, record), from any form; errors name file and line or row.

The suffix tells the form (record_streams.form_of), and the content must agree with it. Memory is bounded: at most
MAX_LINE_BYTES for a record, and MAX_TEXT_BYTES for a JSON file, which is parsed as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from nemo_launcher.config.training_length import count_records as count_lines
from nemo_launcher.data.column_tables import as_text, count_rows, read_columns, saved_files
from nemo_launcher.data.hub import is_source
from nemo_launcher.data.json_lists import is_lines, read_json
from nemo_launcher.data.jsonl import other_kind, read_lines
from nemo_launcher.data.record_streams import TABLES, Form, form_of, head, unpacked
from nemo_launcher.data.record_values import has_value, names_in, value_at
from nemo_launcher.data.text_tables import Header, header_of, read_table
from nemo_launcher.errors import Problem, UserError, nearest

_ROW = " row "
_IN_ROWS = (*TABLES, "json")


def read_records(path: str | Path, columns: Mapping[str, str] | None = None) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield (place, record) for each record of a data file of any form.

    columns: for each renamed field, the column or key that holds its value, or a dotted name (model.data.fields).
    place: `file:line`, or `file: row N` in a table (Parquet, Arrow, a folder saved by `datasets`) or a JSON list.
    Raises UserError for a missing file, a folder that `datasets` did not save, a device or pipe, a damaged file, a file
    that is not of the form its suffix tells, a file without records, records that are too large, and columns that
    the first record has under a similar name only.
    """
    problem = path_problem(path)
    if problem is not None:
        raise UserError(problem)
    form, empty = _form(Path(path)), True
    start, columns = _place_start(path, form), columns or {}
    for number, record in _numbered(Path(path), form):
        if empty:
            _check_columns(columns, record, f"{start}{number}")
        yield f"{start}{number}", _renamed(record, columns, form) if columns else record
        empty = False
    if empty:
        raise UserError(Problem(str(path), "the file has no records", "add records, or name another file"))


def place_start(path: str | Path) -> str:
    """Return what precedes the number in the place of a record: `file:` of a line, `file: row ` in a table or list."""
    return _place_start(path, _form(Path(path)))


def split_place(place: str) -> tuple[str, int]:
    """Return the path and the number of a place."""
    path, _, number = place.rpartition(":")
    return path, int(number.removeprefix(_ROW))


def columns_in(data: Mapping[str, object]) -> dict[str, str]:
    """Return the columns of renamed fields in an adapter's `data` section, whose values are unchecked."""
    fields = data.get("fields")
    named = fields.items() if isinstance(fields, Mapping) else ()
    return {field: column for field, column in named if isinstance(field, str) and isinstance(column, str)}


def path_problem(path: str | Path) -> Problem | None:
    """Return why a path cannot be a data file; None for a file, or a folder that `datasets` saved."""
    if is_source(str(path)):
        fix = "name it in train_ds, validation_ds or data_paths of a launch, and then the file that the launch tells"
        return Problem(str(path), "is data on the Hugging Face Hub, which only a launch fetches", fix)
    path = Path(path)
    if path.is_file():
        return None
    if path.is_dir():
        try:
            saved_files(path)
        except UserError as error:
            return error.problems[0]
        return None
    what = "is a device or pipe, not a regular file" if path.exists() else "no such file"
    if path.is_symlink() and not path.exists():
        what = f"is a link to {path.readlink()}, which does not exist"
    return Problem(str(path), what, "give the path of a data file, or prepare the data first")


def size_of(path: str | Path) -> int:
    """Return the size of a data file in bytes, packed if it is. Raises UserError for what is none (path_problem)."""
    path, size = Path(path), 0
    try:
        for part in [path, *(saved_files(path) if path.is_dir() else [])]:
            problem = path_problem(part)
            if problem is not None:
                raise UserError(problem)
            size += 0 if part.is_dir() else part.stat().st_size
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(Problem(str(path), what, "check its permissions, or name another file")) from error
    return size


def count_records(path: str | Path) -> int:
    """Return the number of records, without parsing them where the form allows it. Raises OSError and UserError."""
    path, problem = Path(path), path_problem(path)
    if problem is not None:  # a device has no end
        raise UserError(problem)
    form = _form(path)
    if form.kind in TABLES:
        return count_rows(path, form)
    if is_plain_lines(path):
        return count_lines(path)
    return sum(1 for _ in _numbered(path, form))


def table_header(path: str | Path) -> Header | None:
    """Return how the header of a CSV or TSV file is read; None for another form, an unreadable file or no header."""
    form = form_of(path)
    if form.kind not in ("csv", "tsv") or path_problem(path) is not None:
        return None
    with contextlib.suppress(UserError, OSError), unpacked(Path(path), form) as stream:
        return header_of(stream, str(path), form.kind)
    return None


def is_plain_lines(path: str | Path) -> bool:
    """Return whether a file holds JSON Lines that are not packed, so that its lines can be read without a parser."""
    return _form(Path(path)) == Form("jsonl")


def _form(path: Path) -> Form:
    """Return the form of a data file; a file named .json may hold JSON Lines."""
    form = form_of(path)
    if form.kind == "json" and path.is_file():
        with contextlib.suppress(UserError, OSError), unpacked(path, form) as stream:
            return dataclasses.replace(form, kind="jsonl") if is_lines(stream) else form
    return form


def _place_start(path: str | Path, form: Form) -> str:
    return f"{path}:{_ROW if form.kind in _IN_ROWS else ''}"


def _renamed(record: dict[str, object], columns: Mapping[str, str], form: Form) -> dict[str, object]:
    """Return a record with the fields that are named otherwise in the file, or lie below a column."""
    own = {name: value for name, value in record.items() if name not in columns.values()}
    found = {field: value_at(record, column) for field, column in columns.items() if has_value(record, column)}
    if form.kind in TABLES:  # where numbers are text
        found |= {field: as_text(value) for field, value in found.items() if columns[field] not in record}
    return own | found


def _check_columns(columns: Mapping[str, str], record: dict[str, object], where: str) -> None:
    """Raise UserError for columns that the first record has under a similar name; the template tells what is absent."""
    absent = [column for column in columns.values() if not has_value(record, column)]
    similar = {column: nearest(column, names_in(record)) for column in absent}
    problems = [
        Problem(where, f"no column {column!r}, which `fields` names", f"did you mean {match!r}?")
        for column, match in similar.items()
        if match is not None
    ]
    if problems:
        raise UserError(problems)


def _numbered(path: Path, form: Form) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the line or row number and the record."""
    source = str(path)
    if form.kind in TABLES:
        yield from read_columns(path, form)
        return
    with unpacked(path, form) as stream:
        if form.kind == "jsonl":
            yield from read_lines(stream, source)
            return
        other = other_kind(head(stream), source)
        if other is not None:
            raise UserError(Problem(source, f"is not {form.kind.upper()}, as its name says", other))
        if form.kind == "json":
            yield from read_json(stream, source)
        else:
            yield from read_table(stream, source, form.kind)
