from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_launcher.data.jsonl import MAX_PROBLEMS, check_fields, read_records
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
    assert list(read_records(path)) == [(1, {"a": "1"}), (3, {"a": "é"})]


def test_records_are_streamed(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"a": "1"}\nbroken\n')
    assert next(read_records(path)) == (1, {"a": "1"})


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
    assert "'context' holds a int, not text" in text
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
