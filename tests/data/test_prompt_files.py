# SPDX-License-Identifier: Apache-2.0
"""Files of records to samples: order, templates by taskname, and every mistake of all files at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from tests.data.prompting import WordTokenizer, samples_of, squad_template, write_rows

pytestmark = pytest.mark.unit


def error_of(paths: list[Path], *templates: TaskTemplate, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        samples_of(paths, *templates, **changes)
    return str(error.value)


def test_samples_come_in_order_with_their_sources(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": text, "answer": "x", "id": 7} for text in ("p", "q", "r")]
    first, second = write_rows(tmp_path, rows[:2]), write_rows(tmp_path, rows[2:], "more.jsonl")
    samples = samples_of([first, second])
    assert [sample.source for sample in samples] == [f"{first}:1", f"{first}:2", f"{second}:1"]
    assert [sample.record for sample in samples] == rows


def test_each_taskname_has_its_own_template(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    rows = [{"taskname": name, "context": "x", "answer": "y"} for name in ("squad", "other")]
    other = TaskTemplate(taskname="other", prompt_template="{context} = {answer}")
    samples = samples_of([write_rows(tmp_path, rows)], squad_template(), other, tokenizer=tokenizer)
    assert [tokenizer.ids_to_text(sample.input_ids) for sample in samples] == ["c: x a: y</s>", "x = y</s>"]


def test_the_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    good = {"taskname": "squad", "context": "x", "answer": "y"}
    rows = [good, {**good, "taskname": "sqad"}, {**good, "answer": ""}, {"taskname": "squad", "contxt": "x"}]
    first, second = write_rows(tmp_path, rows), write_rows(tmp_path, [{"context": "x"}], "more.jsonl")
    message = error_of([first, tmp_path / "absent.jsonl", second])
    assert f"{first}:2: no task template for taskname 'sqad'\n    -> did you mean 'squad'?" in message
    assert f"{first}:3: field 'answer' is empty" in message
    assert f"{first}:4: no field 'context', which the prompt template reads\n    -> did you mean 'contxt'?" in message
    assert "absent.jsonl: no such file" in message
    assert f"{second}:1: no field 'answer'" in message


def test_only_several_templates_need_a_taskname(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"context": "x", "answer": "y"}])
    assert len(samples_of([path])) == 1
    with pytest.raises(UserError, match=f"{path}:1: no 'taskname'"):
        samples_of([path], squad_template(), TaskTemplate(taskname="other", prompt_template="{context}"))


def test_inference_needs_no_answer(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "x"}])
    assert len(samples_of([path], for_train=False)) == 1


def test_a_sample_without_a_token_to_train_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    only_one_token = TaskTemplate(taskname="squad", prompt_template="{context}")
    assert "no token is left to train on" in error_of([path], only_one_token, add_eos=False)


def test_too_long_prompts_are_an_error_unless_some_may_be_dropped(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": "w " * length, "answer": "y"} for length in (1, 2, 30, 20)]
    path = write_rows(tmp_path, rows)
    message = error_of([path], max_seq_length=16, max_dropped_share=0.49)
    assert f"2 of 4 prompts are longer than 16 tokens; the longest, {path}:3, has 3" in message
    for key in ("encoder_seq_length", "truncate_field", "max_dropped_share=0.5"):
        assert key in message
    lines: list[str] = []
    assert len(samples_of([path], max_seq_length=16, max_dropped_share=0.5, report=lines.append)) == 2
    assert len(lines) == 1
    assert "2 of 4 prompts" in lines[0]


def test_cut_prompts_are_counted_but_not_those_that_are_dropped(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": "w " * length, "answer": "y"} for length in (1, 20, 30)]
    rows.append({"taskname": "squad", "context": "w " * 20, "answer": "y " * 40})
    path, lines = write_rows(tmp_path, rows), list[str]()
    template = squad_template(truncate_field="context", answer_field="answer")
    options = {"max_seq_length": 16, "max_dropped_share": 0.25, "report": lines.append}
    assert len(samples_of([path], template, **options)) == 3
    assert lines[0] == "2 of 4 prompts were cut to 16 tokens, at the end of their truncate_field"
    assert "1 of 4 prompts are longer" in lines[1]


def test_an_empty_data_set_is_refused_however_many_may_be_dropped(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "w " * 20, "answer": "y"}])
    assert "1 of 1 prompts" in error_of([path], max_seq_length=8, max_dropped_share=1.0)


def test_tokens_to_generate_are_kept_free(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "one two three"}])
    options: dict[str, Any] = {"for_train": False, "add_eos": False, "max_seq_length": 10}
    assert len(samples_of([path], tokens_to_generate=5, **options)) == 1
    assert "longer than 4 tokens" in error_of([path], tokens_to_generate=6, **options)
    assert "0 tokens are left" in error_of([path], tokens_to_generate=10, **options)


def test_a_special_token_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    tokenizer.bos_id = None  # type: ignore[assignment]
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    assert "model.data.add_bos: the tokenizer has no such token" in error_of([path], tokenizer=tokenizer, add_bos=True)


def test_two_templates_of_one_taskname_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    assert "two templates for 'squad'" in error_of([path], squad_template(), squad_template())
