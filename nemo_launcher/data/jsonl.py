# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: files of one JSON object per line, read as a stream; errors name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO

from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import parse_json

MAX_PROBLEMS = 5
"""The maximum number of problems reported for a file; a broken file mostly repeats them."""

MAX_LINE_BYTES = 16 * 2**20
"""The maximum size of a record: more than any model takes, and small enough for memory."""

_ONE_OBJECT_A_LINE = 'write one JSON object per line, such as {"taskname": "squad", "question": "...", "answer": "..."}'


def read_lines(stream: IO[bytes], source: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number from 1, object) for each line of a JSON Lines file; blank lines are skipped.

    source: the file's name for messages. Raises UserError if the file is not UTF-8, or has no objects, and for a line
    that is malformed JSON (see foreign.parse_json), not an object, or longer than MAX_LINE_BYTES.
    """
    empty = True
    for number, line in enumerate(bounded_lines(stream, source), start=1):
        if line.strip() not in (b"", _BYTE_ORDER_MARK):
            yield number, _parse(line, source, number, is_first=empty)
            empty = False
    if empty:
        raise UserError(Problem(source, "the file is empty", _ONE_OBJECT_A_LINE))


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


def _parse(line: bytes, source: str, number: int, *, is_first: bool) -> dict[str, object]:
    try:
        record = parse_json(line, source, line=number)
    except UserError as error:
        told = error.problems[0]
        raise UserError(Problem(told.where, told.what, advice(line, source, is_first=is_first))) from None
    if not isinstance(record, dict):
        what = f"holds {json_kind(record)}, not an object"
        raise UserError(Problem(f"{source}:{number}", what, advice(line, source, is_first=is_first)))
    return record


# --- advice for files in other formats ----------------------------------------------------------------------------

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_SNIFFED_BYTES = 4096
_OTHER_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip: gunzip {0}, or name it as in {0}.gz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unzstd {0}, or name it as in {0}.zst"),
    (b"BZh", "is compressed with bzip2: bunzip2 {0}"),
    (b"\xfd7zXZ", "is compressed with xz: unxz {0}"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4: unlz4 {0}"),
    (b"PK\x03\x04", "is a zip archive: unzip {0}"),
    (b"PAR1", "is Parquet: name it .parquet"),
    (b"ARROW1", "is Arrow: name it .arrow"),
    (b"\xff\xff\xff\xff", "is Arrow, in the stream format: name it .arrow"),
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
    name, text = _shell_name(source), line.strip()
    if is_first:
        other = other_kind(line, source)
        if other is not None:
            return other
        if text.startswith(b"["):
            return f"name it .json, or write one object per line: jq -c '.[]' {name} > lines.jsonl"
        if text.startswith(b"{") and (text == b"{" or text.endswith((b",", b"["))):
            return f"write each object on one line: jq -c . {name} > lines.jsonl"
        if b"{" not in text and (b"," in text or b"\t" in text or b";" in text):
            return f"the file looks like CSV: name it .csv, or {_ONE_OBJECT_A_LINE}"
    if b"\0" in line:
        return "the file has NUL bytes, perhaps from a crash or an interrupted copy: copy it again"
    if b"}\r{" in line or b"} {" in line or b"}{" in line:
        return f"write one object per line, each followed by a line feed (\\n): jq -c . {name} > lines.jsonl"
    return _ONE_OBJECT_A_LINE


def other_kind(start: bytes, source: str) -> str | None:
    """Return advice for a file of a kind that its name does not tell, from its first bytes; None for text."""
    name = _shell_name(source)
    for magic, what in _OTHER_KINDS:
        if start.startswith(magic):
            return "the file " + what.format(name)
    if (start[:1] == b"\0") != (start[1:2] == b"\0"):
        return f"the file is UTF-16: iconv -f UTF-16LE -t UTF-8 {name} (or UTF-16BE)"
    return None


def _shell_name(source: str) -> str:
    return source if " " not in source else f"'{source}'"
