# SPDX-License-Identifier: Apache-2.0
"""Dotted names of values below a column, and several right answers, as SQuAD is published on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, parquet

from nemo_launcher.data.duplicates import Contents
from nemo_launcher.data.labels import find_labels
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.record_values import value_at
from nemo_launcher.data.records import read_records
from nemo_launcher.data.sampled_lengths import sampled_lengths
from nemo_launcher.data.tasks import Tasks, check_tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from tests.caches import SQUAD, gpt_encoder, t5_encoder
from tests.engine import write_jsonl

pytestmark = pytest.mark.unit

COLUMNS = {"answer": "answers.text"}
ROWS: list[dict[str, Any]] = [
    {"context": "c", "question": "q", "answers": {"text": ["first", "second"], "answer_start": [3, 9]}},
    {"context": "c", "question": "r", "answers": {"text": ["third"], "answer_start": [1]}},
]


def _jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write_jsonl(folder / "data.jsonl", rows)


def _json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "data.json").write_text(json.dumps({"data": rows}))
    return folder / "data.json"


def _parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def _arrow(folder: Path, rows: list[dict[str, Any]]) -> Path:
    feather.write_feather(pyarrow.Table.from_pylist(rows), folder / "data.arrow", compression="uncompressed")
    return folder / "data.arrow"


FORMS = pytest.mark.parametrize("write", [_jsonl, _json, _parquet, _arrow])


@FORMS
def test_the_first_answer_is_learnt_and_all_are_right(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    path = write(tmp_path, ROWS)
    assert check_tasks(path, [SQUAD], for_train=True, nemo_compat=False, columns=COLUMNS) == []
    encoder = gpt_encoder()
    sample, _ = encode_files([path], [SQUAD], encoder, columns=COLUMNS)
    assert encoder.tokenizer.ids_to_text(sample.input_ids[sample.answer_start : -1]) == " first"
    asked, _ = encode_files(
        [path], [SQUAD], gpt_encoder(for_train=False, add_eos=False), columns=COLUMNS, withhold_answers=True
    )
    assert encoder.tokenizer.ids_to_text(asked.input_ids).endswith("answer:")
    assert len(encode_files([path], [SQUAD], t5_encoder(), columns=COLUMNS)) == 2
    labels = find_labels([str(path)], None, [SQUAD], columns=COLUMNS)
    assert [label.answers for label in labels] == [["first", "second"], ["third"]]
    lengths = sampled_lengths([path], [SQUAD], len, limit=1000, answer_apart=False, columns=COLUMNS)
    assert lengths is not None
    assert lengths.longest_answer == len("first")


def test_a_template_may_name_them_itself(tmp_path: Path) -> None:
    template = TaskTemplate(
        taskname="squad",
        prompt_template="{context} {question} {answers.text}",
        answer_field="answers.text",
        answer_only_loss=True,
    )
    path = _jsonl(tmp_path, [*ROWS, ROWS[0] | {"answers": {"text": ["other"]}}])
    encoder = gpt_encoder()
    sample, *_ = encode_files([path], [template], encoder)
    assert encoder.tokenizer.ids_to_text(sample.input_ids[:-1]) == "c q first"
    asked, *_ = encode_files([path], [template], gpt_encoder(for_train=False, add_eos=False), withhold_answers=True)
    assert encoder.tokenizer.ids_to_text(asked.input_ids) == "c q"
    assert [label.answers for label in find_labels([str(path)], None, [template])][:1] == [["first", "second"]]
    contents = Contents(Tasks.of([template]))
    for place, record in read_records(path):
        contents.add(record, place)
    assert contents.contradictory == [(f"{path}:3", f"{path}:1")]


def test_where_values_are_found() -> None:
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1  # a name that has a dot itself
    assert value_at({"a": {"b": {"c": "x"}}}, "a.b.c") == "x"
    assert value_at({"a": [{"b": "x"}, {"b": "y"}]}, "a.b") == ["x", "y"]
    assert value_at({"a": []}, "a.b") == []
    assert value_at({"a": [{"b": "x"}, {}]}, "a.b", "none") == "none"
    assert value_at({"a": "text"}, "a.b") is None


def test_numbers_of_tables_are_text_below_a_column_too(tmp_path: Path) -> None:
    path = _parquet(tmp_path, [{"a": {"one": 1, "all": [1.5, 2.0]}}])
    ((_, record),) = read_records(path, {"one": "a.one", "all": "a.all"})
    assert (record["one"], record["all"]) == ("1", ["1.5", "2.0"])


def test_mistakes_name_the_value_that_was_meant(tmp_path: Path) -> None:
    path = _jsonl(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"did you mean 'answers\.text'\?"):
        next(read_records(path, {"answer": "answers.txet"}))
    columns = {"answer": "answers"}
    (problem,) = check_tasks(path, [SQUAD], for_train=True, nemo_compat=False, columns=columns)
    assert "holds an object, not text" in problem.what
    assert "`fields` can name a value in it, as in COLUMN.text" in problem.fix
    none = _jsonl(tmp_path, [ROWS[0] | {"answers": {"text": []}}])
    (problem,) = check_tasks(none, [SQUAD], for_train=True, nemo_compat=False, columns=COLUMNS)
    assert "there is no answer to learn" in problem.what
