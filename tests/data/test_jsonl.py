# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from nemo_launcher.data.jsonl import MAX_LINE_BYTES, MAX_PROBLEMS, json_line
from nemo_launcher.data.record_checks import check_fields
from nemo_launcher.data.records import read_records
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _error(path: Path) -> str:
    with pytest.raises(UserError) as error:
        list(read_records(path))
    return str(error.value)


def test_records_come_with_their_line_numbers_past_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = _file(tmp_path, b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "\xc3\xa9"}')
    assert list(read_records(path)) == [(f"{path}:1", {"a": "1"}), (f"{path}:3", {"a": "é"})]


def test_records_are_streamed(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"a": "1"}\nbroken\n')
    assert next(read_records(path)) == (f"{path}:1", {"a": "1"})


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ('{"a": "1"}\n{"a": \n', ":2:", "not JSON"),
        ('{"a": "1"}\n["a"]\n', ":2", "list, not an object"),
        (b'{"a": "1"}\n{"a": "\xff"}\n', ":2", "not UTF-8"),
        ("[" * 100_000, ":1", "nested too deeply"),
        ("", "data.jsonl", "empty"),
        ("\n\n", "data.jsonl", "empty"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(tmp_path: Path, content: str | bytes, where: str, what: str) -> None:
    path = _file(tmp_path, content)
    message = _error(path)
    assert str(path) in message
    assert where in message
    assert what in message


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert "no such file" in _error(tmp_path / "absent.jsonl")
    assert "folder" in _error(tmp_path)


def test_check_fields_accepts_fields_that_the_template_does_not_read(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"question": "q", "answer": "a", "id": 7}\n')
    assert check_fields(path, ["question", "answer"], "answer") == []


def test_check_fields_tells_all_kinds_of_mistakes_once(tmp_path: Path) -> None:
    rows = [{"qestion": "q", "context": 3, "answer": " "}] * 20
    path = _file(tmp_path, "\n".join(map(json.dumps, rows)))
    problems = check_fields(path, ["question", "context", "answer"], "answer")
    assert len(problems) == 3
    text = "\n".join(map(str, problems))
    assert f"{path}:1: no field 'question'" in text
    assert "did you mean 'qestion'? the record has: qestion, context, answer" in text
    assert "'context' holds a number, not text" in text
    assert "'answer' is empty" in text


def test_an_empty_answer_is_fine_where_none_is_wanted(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"question": "q", "answer": ""}\n')
    assert check_fields(path, ["question", "answer"], None) == []


def test_check_fields_reads_no_further_than_the_limit(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"a": "1"}\nbroken\n')
    assert check_fields(path, ["a"], None, limit=1) == []
    assert "not JSON" in str(check_fields(path, ["a"], None)[0])


def test_check_fields_shows_a_handful_at_most(tmp_path: Path) -> None:
    path = _file(tmp_path, "{}\n")
    assert len(check_fields(path, [f"field{index}" for index in range(20)], None)) == MAX_PROBLEMS


# --- what no record may be ----------------------------------------------------------------------------------------

UTF16 = '{"a": "1"}\n'


@pytest.mark.parametrize(
    ("content", "where", "what", "fix"),
    [
        ('{"a": %s}' % ("7" * 5000), ":1", "a number with 5,000 digits", "one JSON object per line"),
        ('{"a": "1"}\n{"b": "\\ud800"}', ":2", "half of a surrogate pair", ""),
        ('{"a": {"b": ["\\uDFFF"]}}', ":1", "half of a surrogate pair", ""),
        ('{"\\udc00": "1"}', ":1", "half of a surrogate pair", ""),
        ('{"a": NaN}', ":1", "NaN is not a JSON number", ""),
        ('{"a": -Infinity}', ":1", "-Infinity is not a JSON number", ""),
        ('{"a": 1e999}', ":1", "1e999 is too large for a number", ""),
        ('{"a": "1", "a": "2"}', ":1", "the key 'a' occurs twice", ""),
        ("[" * 60 + "]" * 60, ":1", "nested more than 50 levels", "jq -c"),
        (gzip.compress(b'{"a": "1"}', mtime=0), ":1", "not UTF-8", "compressed with gzip: gunzip"),
        (b"\x28\xb5\x2f\xfd\x04\x00", ":1", "not UTF-8", "compressed with zstd"),
        (b"PK\x03\x04\x14\x00", ":1", "not JSON", "zip archive"),
        (b"PAR1\x15\x04\x15", ":1", "not JSON", "Parquet"),
        (b"\xff\xfe" + UTF16.encode("utf-16-le"), ":1", "not UTF-8", "iconv -f UTF-16"),
        (UTF16.encode("utf-16-le"), ":1", "not JSON", "iconv -f UTF-16LE"),
        (UTF16.encode("utf-16-be"), ":1", "not JSON", "UTF-16BE"),
        ('[{"a": "1"}, {"a": "2"}]', ":1", "list, not an object", "jq -c '.[]'"),
        ('[\n  {"a": "1"},\n', ":1:", "not JSON", "jq -c '.[]'"),
        ('{\n  "a": "1"\n}\n', ":1:", "not JSON", "write each object on one line: jq -c ."),
        ("a,b\n1,2\n", ":1:", "not JSON", "looks like CSV"),
        ('{"a": "1"}\r{"a": "2"}', ":1:", "not JSON", "a line feed"),
        ('{"a": "1"}{"a": "2"}', ":1:", "not JSON", "a line feed"),
        (b'{"a": "1"}\n' + b"\0" * 50, ":2:", "not JSON", "NUL bytes"),
        ("version https://git-lfs.github.com/spec/v1\noid", ":1:", "not JSON", "git lfs pull"),
        ("<!DOCTYPE html>\n", ":1:", "not JSON", "HTML"),
        ('"text"', ":1", "holds text, not an object", "one JSON object per line"),
        (b"\xef\xbb\xbf\n", "data.jsonl", "empty", ""),
    ],
)
def test_what_no_json_line_may_be_is_named_with_the_way_out(
    tmp_path: Path, content: str | bytes, where: str, what: str, fix: str
) -> None:
    path = _file(tmp_path, content)
    message = _error(path)
    assert f"{path}{where}" in message or where == "data.jsonl"
    assert what in message
    assert fix in message


def test_only_a_line_feed_ends_a_record(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"a": "x\u2028y\x85z"}\r\n\n{"a": "\\ud83c\\udf09 \\u0000"}\n')
    assert [record["a"] for _, record in read_records(path)] == ["x\u2028y\x85z", "🌉 \0"]


def test_a_huge_line_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "1"}\n{"a": "')
        file.truncate(20 * MAX_LINE_BYTES)
    tracemalloc.start()
    message = _error(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{path}:2: the line has more than 16,777,216 bytes" in message
    assert peak < 4 * MAX_LINE_BYTES


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or pipe" in _error(tmp_path / "pipe")
    assert "is a device or pipe" in _error(Path("/dev/zero"))


def test_a_record_of_many_fields_makes_no_long_message(tmp_path: Path) -> None:
    record = json.dumps({f"{'x' * 1000}{number}": "" for number in range(1000)})
    text = str(check_fields(_file(tmp_path, record), ["question"], None)[0])
    assert len(text) < 2000


def test_a_line_that_is_written_is_one_for_every_reader() -> None:
    values = {"a": "x\u2028y\u2029z\x85\n\r\v", "é": [1, None]}
    line = json_line(values)
    assert len(line.splitlines()) == 1
    assert "é" in line
    assert json.loads(line) == values
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"a": float("nan")})
