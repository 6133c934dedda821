# SPDX-License-Identifier: Apache-2.0
"""JSON Lines files, read as a stream of one JSON object per line; errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

from nemo_launcher.errors import Problem, UserError, json_kind, nearest
from nemo_launcher.files.foreign import parse_json

MAX_PROBLEMS = 5
"""The maximum number of problems reported for a file; a broken file mostly repeats them."""

MAX_LINE_BYTES = 16 * 2**20
"""The maximum size of a record: more than any model takes, and small enough for memory."""
_SHOWN_NAMES, _SHOWN_CHARACTERS = 20, 60

_ONE_OBJECT_A_LINE = 'write one JSON object per line, such as {"taskname": "squad", "question": "...", "answer": "..."}'


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number from 1, object) for each line of a JSON Lines file; blank lines are skipped.

    Raises UserError if the file is missing, a folder or pipe, not UTF-8, or has no objects, and for a line that is
    malformed JSON (see foreign.parse_json), not an object, or longer than MAX_LINE_BYTES.
    """
    path = Path(path)
    if not path.is_file():
        what = "no such file"
        if path.exists():
            what = "is a folder, not a file" if path.is_dir() else "is a device or pipe, not a regular file"
        raise UserError(Problem(str(path), what, "give the path of a .jsonl file, or prepare the data first"))
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file, str(path)), start=1):
            if line.strip() not in (b"", _BYTE_ORDER_MARK):
                yield number, _parse(line, path, number, is_first=empty)
                empty = False
    if empty:
        raise UserError(Problem(str(path), "the file is empty", _ONE_OBJECT_A_LINE))


def bounded_lines(file: IO[bytes], source: str) -> Iterator[bytes]:
    """Yield the lines of an open file. Raises UserError for a line longer than MAX_LINE_BYTES without reading it."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            what = f"the line has more than {MAX_LINE_BYTES:,} bytes"
            raise UserError(Problem(f"{source}:{number}", what, advice(line[:_SNIFFED_BYTES], source)))
        yield line


def json_line(values: Mapping[str, object]) -> str:
    """Return an object as JSON on one line, without a line feed. Raises ValueError for infinite or NaN numbers.

    Characters that some readers treat as line breaks (U+0085, U+2028, U+2029) are escaped.
    """
    return json.dumps(values, ensure_ascii=False, allow_nan=False).translate(_LINE_BREAKS)


def check_fields(
    path: str | Path, fields: Iterable[str], answer_field: str | None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of the first `limit` records (None: all), at most `MAX_PROBLEMS`.

    fields: those that the prompt template reads; answer_field: a field that must not be empty, or None. Each missing
    field is reported once; additional fields are ignored.
    """
    fields = list(fields)
    return first_problems(path, lambda record, where: record_problems(record, where, fields, answer_field), limit)


def first_problems(
    path: str | Path, problems_of: Callable[[dict[str, object], str], Iterable[Problem]], limit: int | None = None
) -> list[Problem]:
    """Return the distinct problems of the first `limit` records (None: all), at most `MAX_PROBLEMS`.

    problems_of: called with a record and its place (`file:line`). An unreadable file is also a problem.
    """
    problems: dict[str, Problem] = {}
    try:
        for number, record in islice(read_records(path), limit):
            for problem in problems_of(record, f"{path}:{number}"):
                problems.setdefault(problem.what, problem)
            if len(problems) >= MAX_PROBLEMS:
                break
    except UserError as error:
        return [*problems.values(), *error.problems][:MAX_PROBLEMS]
    return list(problems.values())[:MAX_PROBLEMS]


def record_problems(
    record: dict[str, object], where: str, fields: Iterable[str], answer_field: str | None
) -> Iterator[Problem]:
    """Yield a record's problems with a prompt template: missing fields, values other than text, an empty answer."""
    for field in fields:
        if field not in record:
            yield Problem(where, f"no field {field!r}, which the prompt template reads", _field_advice(field, record))
            continue
        value = record[field]
        if not isinstance(value, str):
            what = f"field {field!r} holds {json_kind(value)}, not text"
            yield Problem(where, what, "write a JSON string in double quotes")
        elif field == answer_field and not value.strip():
            yield Problem(where, f"field {field!r} is empty: there is no answer to learn", "fill it or remove the line")


def _parse(line: bytes, path: Path, number: int, *, is_first: bool) -> dict[str, object]:
    try:
        record = parse_json(line, str(path), line=number)
    except UserError as error:
        told = error.problems[0]
        raise UserError(Problem(told.where, told.what, advice(line, str(path), is_first=is_first))) from None
    if not isinstance(record, dict):
        what = f"holds {json_kind(record)}, not an object"
        raise UserError(Problem(f"{path}:{number}", what, advice(line, str(path), is_first=is_first)))
    return record


# --- advice for files in other formats ----------------------------------------------------------------------------

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_SNIFFED_BYTES = 4096
_OTHER_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip: gunzip {0}"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unzstd {0}"),
    (b"BZh", "is compressed with bzip2: bunzip2 {0}"),
    (b"\xfd7zXZ", "is compressed with xz: unxz {0}"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4: unlz4 {0}"),
    (b"PK\x03\x04", "is a zip archive: unzip {0}"),
    (
        b"PAR1",
        "is Parquet: convert it, such as with pandas.read_parquet(...).to_json(..., orient='records', lines=True)",
    ),
    (b"ARROW1", "is Arrow: convert it to JSON Lines"),
    (b"SQLite format 3", "is an SQLite database: export it as JSON Lines"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data: git lfs pull"),
    (b"\xff\xfe", "is UTF-16: iconv -f UTF-16 -t UTF-8 {0}"),
    (b"\xfe\xff", "is UTF-16: iconv -f UTF-16 -t UTF-8 {0}"),
    (b"<", "is HTML or XML, perhaps an error page: download it again"),
)


def advice(line: bytes, source: str, *, is_first: bool = True) -> str:
    """Return how to repair a file with a line that is not a record.

    line: that line; is_first: whether it is the first line, which shows the format of the file.
    """
    name = source if " " not in source else f"'{source}'"
    text = line.strip()
    if is_first:
        for start, what in _OTHER_KINDS:
            if line.startswith(start):
                return "the file " + what.format(name)
        if (line[:1] == b"\0") != (line[1:2] == b"\0"):
            return f"the file is UTF-16: iconv -f UTF-16LE -t UTF-8 {name} (or UTF-16BE)"
        if text.startswith(b"["):
            return f"write one object per line instead of a list: jq -c '.[]' {name} > lines.jsonl"
        if text.startswith(b"{") and (text == b"{" or text.endswith((b",", b"["))):
            return f"write each object on one line: jq -c . {name} > lines.jsonl"
        if b"{" not in text and (b"," in text or b"\t" in text or b";" in text):
            return f"the file looks like CSV: {_ONE_OBJECT_A_LINE}"
    if b"\0" in line:
        return "the file has NUL bytes, perhaps from a crash or an interrupted copy: copy it again"
    if b"}\r{" in line or b"} {" in line or b"}{" in line:
        return f"write one object per line, each followed by a line feed (\\n): jq -c . {name} > lines.jsonl"
    return _ONE_OBJECT_A_LINE


def _field_advice(field: str, record: dict[str, object]) -> str:
    names = [name[:_SHOWN_CHARACTERS] for name in islice(record, _SHOWN_NAMES)]
    more = ", ..." if len(record) > _SHOWN_NAMES else ""
    has = f"the record has: {', '.join(names) + more or 'no fields'}"
    match = nearest(field, record)
    return f"did you mean {match!r}? {has}" if match else f"{has}; add the field or change prompt_template"
