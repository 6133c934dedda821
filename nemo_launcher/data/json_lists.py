# SPDX-License-Identifier: Apache-2.0
"""JSON files that hold a list of records; errors name file and record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from nemo_launcher.data.jsonl import MAX_LINE_BYTES
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, parse_json

_LINES = "write JSON Lines, which are read as a stream: jq -c '.[]' FILE > lines.jsonl"
_LIST = 'write a list of objects, or an object with one such list, as in {"data": [...]}'


def read_json(stream: IO[bytes], source: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (number from 1, record) for each record of a JSON file.

    The file holds a list of objects, or an object with one key whose value is such a list; any other object is the only
    record. Raises UserError for other content, and for more than MAX_TEXT_BYTES.
    """
    content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        what = f"has more than {MAX_TEXT_BYTES:,} bytes, the limit of a file that is parsed as a whole"
        raise UserError(Problem(source, what, _LINES))
    for number, record in enumerate(_list_in(parse_json(content, source, fix=_LIST), source), start=1):
        if not isinstance(record, dict):
            what = f"holds {json_kind(record)}, not an object"
            raise UserError(Problem(f"{source}: row {number}", what, _LIST))
        yield number, record


def is_lines(stream: IO[bytes]) -> bool:
    """Return whether a file named .json holds JSON Lines: its first line is a whole object, not a list under a key."""
    while line := stream.readline(MAX_LINE_BYTES):
        line = line.removeprefix(b"\xef\xbb\xbf").strip()
        if line:
            break
    if not line.startswith(b"{"):
        return False
    try:
        value = parse_json(line, "")
    except UserError:
        return False
    return isinstance(value, dict) and not _lists_in(value)


def _list_in(value: object, source: str) -> list[object]:
    """Return the list of records in a parsed file."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(Problem(source, f"holds {json_kind(value)}, not a list of objects", _LIST))
    lists = _lists_in(value)
    if not lists:  # a single record
        return [value]
    if len(lists) > 1:
        what = f"has several lists of objects: {', '.join(name[:60] for name in list(lists)[:10])}"
        raise UserError(Problem(source, what, "write the list to use into a file of its own: jq .KEY FILE > NEW.json"))
    return next(iter(lists.values()))


def _lists_in(value: dict[str, object]) -> dict[str, list[object]]:
    """Return the lists of objects in an object, by key."""
    return {name: found for name, found in value.items() if isinstance(found, list) and found and _all_objects(found)}


def _all_objects(values: list[object]) -> bool:
    return all(isinstance(value, dict) for value in values)
