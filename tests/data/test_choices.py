# SPDX-License-Identifier: Apache-2.0
"""Answer choices of records: what is refused, and their samples with one prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.config.choice_loss import choice_loss_problems, uses_choices
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.config.traversal import allows_depth
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.tasks import check_tasks
from nemo_launcher.data.templates import TaskTemplate, wrong_choices
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from nemo_launcher.families.gpt.samples import GPTChoices
from nemo_launcher.families.t5.samples import T5Choices
from tests import t5
from tests.caches import gpt_encoder, load, t5_encoder
from tests.data.prompting import WordTokenizer, write_rows
from tests.engine import write_jsonl
from tests.jobs import loaded

pytestmark = pytest.mark.unit

TEMPLATE = TaskTemplate(
    taskname="mood",
    prompt_template="text: {text} mood: {mood}",
    answer_field="mood",
    answer_only_loss=True,
    truncate_field="text",
    choices_field="moods",
)
FIXED = replace(TEMPLATE, choices_field=None, choices=("good", "very bad"))
ROW = {"taskname": "mood", "text": "a b c d", "mood": "good", "moods": ["very bad", "good", "goodness me too"]}


def problems(folder: Path, template: TaskTemplate, *rows: dict[str, Any], for_train: bool = True) -> str:
    path = write_jsonl(folder / "data.jsonl", rows)
    found = check_tasks(path, [template], for_train=for_train, nemo_compat=False)
    return "\n".join(map(str, found)).replace(f"{path}", "data")


def words(**changes: Any) -> GPTPromptEncoder:
    options = {"add_bos": False, "add_eos": True, "max_seq_length": 100, "for_train": True, "with_choices": True}
    return GPTPromptEncoder(**{"tokenizer": WordTokenizer(), **options, **changes})


@pytest.mark.parametrize(
    ("moods", "what"),
    [
        (None, "holds null, not a list of texts"),
        ("good", "holds text, not a list"),
        ([], "has 0 choices"),
        (["good"], "has 1 choice,"),
        (["good", " "], "holds an empty choice"),
        (["good", "bad", "good"], "holds 'good' twice"),
        (["good", 3], "holds a number, not only texts"),
        (["fine", "bad"], "'mood' is 'good', which is not one of the choices"),
        (["Good", "bad"], "write 'Good'"),
    ],
)
def test_wrong_choices_are_refused_with_the_line(tmp_path: Path, moods: Any, what: str) -> None:
    found = problems(tmp_path, TEMPLATE, ROW, ROW | {"moods": moods})
    assert found.startswith("data:2: ")
    assert what in found


def test_very_many_choices_are_checked_in_one_pass() -> None:
    many = [str(number) for number in range(200_000)]
    assert list(wrong_choices(many)) == []
    assert list(wrong_choices([*many, "7"])) == ["holds '7' twice"]


def test_choices_of_a_record_without_an_answer_are_checked_too(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "mood"}
    assert problems(tmp_path, TEMPLATE, row, for_train=False) == ""
    assert "no field 'moods'" in problems(tmp_path, TEMPLATE, {"taskname": "mood", "text": "a"}, for_train=False)
    assert problems(tmp_path, FIXED, ROW) == ""
    assert "is not one of the choices" in problems(tmp_path, FIXED, ROW | {"mood": "middling"})


def test_the_answer_of_a_jinja_template_is_one_of_the_texts(tmp_path: Path) -> None:
    jinja = replace(TEMPLATE, template_format="jinja", prompt_template="text: {{ text }} mood: {{ mood }}")
    assert problems(tmp_path, jinja, ROW) == ""
    assert "'mood' holds a number, not the text of a choice" in problems(tmp_path, jinja, ROW | {"mood": 3})


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"choices": ["a", "b"]}, "choices_field names the choices too"),
        ({"choices_field": None, "choices": ["a"]}, "has 1 choice"),
        ({"choices_field": "mood"}, "is answer_field"),
        ({"answer_only_loss": False}, "must be True"),
        ({"choices_field": None, "choices": "ab"}, "is not a list"),
    ],
)
def test_wrong_templates_are_refused(changes: dict[str, Any], what: str) -> None:
    entry = {name: getattr(TEMPLATE, name) for name in TEMPLATE.__slots__} | changes
    with pytest.raises(UserError, match=what):
        TaskTemplate.from_config(entry)


def test_choices_share_their_prompt_and_start_where_a_single_answer_would(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [ROW, ROW | {"mood": "very bad"}])
    samples = encode_files([path], [TEMPLATE], words())
    encoder = words(with_choices=False)
    for sample, right in zip(samples, (1, 0), strict=True):
        assert isinstance(sample, GPTChoices)
        assert sample.right == right
        alone = [encoder.encode(ROW | {"mood": mood}, TEMPLATE) for mood in ROW["moods"]]
        found = sample.sequences()
        assert [choice.answer_start for choice in found] == [choice.answer_start for choice in alone]
        assert len({tuple(choice.input_ids[: sample.num_shared]) for choice in found}) == 1
        assert [len(choice.input_ids) for choice in found] == [len(choice.input_ids) for choice in alone]
        assert sample.input_ids == found[2].input_ids  # the longest
        assert sample.num_trained_tokens == alone[right].num_trained_tokens
        assert sample.num_wrong_tokens == sum(s.num_trained_tokens for s in alone) - sample.num_trained_tokens


def test_a_prompt_is_cut_once_so_that_its_longest_choice_fits(tmp_path: Path) -> None:
    row = ROW | {"text": " ".join("abcdefghij")}
    (sample,) = encode_files([write_rows(tmp_path, [row])], [TEMPLATE], words(max_seq_length=10))
    assert isinstance(sample, GPTChoices)
    assert max(len(choice.input_ids) for choice in sample.sequences()) == 10
    assert len({tuple(choice.input_ids[: choice.answer_start]) for choice in sample.sequences()}) == 1
    assert sample.num_shortened > 0


def test_choices_with_the_same_tokens_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [ROW, ROW | {"moods": ["good", "good "]}])
    with pytest.raises(UserError, match=r"data.jsonl:2: two choices have the same tokens"):
        encode_files([path], [TEMPLATE], words())


@pytest.mark.parametrize("make", [gpt_encoder, t5_encoder])
def test_samples_with_choices_come_back_from_the_cache(tmp_path: Path, make: Any) -> None:
    path = write_rows(tmp_path, [ROW, ROW | {"mood": "very bad", "moods": ["very bad", "good"]}])
    encoder = make(with_choices=True, max_seq_length=100)
    fresh = encode_files([path], [TEMPLATE], encoder)
    for _ in range(2):
        cached = list(load([path], encoder, tmp_path / "cache", templates=[TEMPLATE]))
        assert all(isinstance(sample, GPTChoices | T5Choices) for sample in cached)
        assert [replace(sample, record={}) for sample in fresh] == cached


def losses(**changes: Any) -> Any:
    config = t5.training_config(Path("b.nemo"), Path("data"), Path("results"), {"model.loss": {"length_norm": True}})
    config["model"]["task_templates"] = [{**t5.TEMPLATE, "choices_field": "moods"}]
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (config["model"][section] if section else config["model"])[key] = value
    return loaded(config)


def test_settings_that_divide_choices_are_refused_by_name() -> None:
    assert option_problems(losses()) == []
    for changes, where in (
        ({"nemo_compat": True}, "model.nemo_compat"),
        ({"data__cache_hidden": True}, "model.data.cache_hidden"),
        ({"data__traversal": "depth"}, "model.data.traversal"),
        ({"task_templates": [t5.TEMPLATE]}, "model.task_templates.0.choices"),
    ):
        found = choice_loss_problems(losses(**changes).section.model)
        assert [problem.where for problem in found] == [where]
        assert choice_loss_problems(losses(**changes, loss={}).section.model) == []
    assert not allows_depth(losses().section.model)
    assert uses_choices(losses().section.model)


def test_a_configuration_without_the_losses_does_not_mention_them() -> None:
    job = losses(loss={"length_norm": False}, task_templates=[t5.TEMPLATE])
    assert "loss" not in job.values["model"]
    assert not {"choices", "choices_field"} & job.values["model"]["task_templates"][0].keys()
    assert not uses_choices(job.section.model)
