# SPDX-License-Identifier: Apache-2.0
"""A prediction is the generated text, whatever it or the prompt contains; labels may be in the data or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.config.load import load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation import predictions
from nemo_launcher.evaluation import run as evaluation
from nemo_launcher.evaluation.predictions import one_line
from tests.engine import TEMPLATE, adapted, squad_records, write_jsonl
from tests.jobs import evaluation_config, job_config

pytestmark = pytest.mark.unit

HEADLINE = "{text}\n-> {title}"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two tasks, whose templates end in different words."""
    folder = tmp_path_factory.mktemp("adapter")
    config = job_config(tiny_base, folder, folder)["model"]
    titles = config["task_templates"][0] | {"taskname": "headlines", "prompt_template": HEADLINE}
    config["task_templates"] = [*config["task_templates"], titles | {"answer_field": "title"}]
    save_adapter(folder / "adapter.nemo", config, adapted(tiny_base, config)[1].state_dict())
    return folder / "adapter.nemo"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the model generate these texts, one per question."""
    texts: list[str] = []

    def generate(base: Any, samples: Any, *_: Any, **__: Any) -> list[list[int]]:
        assert len(samples) == len(texts)
        return [base.tokenizer.text_to_ids(text) for text in texts]

    monkeypatch.setattr(evaluation, "generate", generate)
    return texts


def two_tasks(folder: Path) -> list[Path]:
    """Two data files, one per task, with answers."""
    squad = [{**record, "answer": [record["answer"], "x"]} for record in squad_records(2)]
    titles = [{"taskname": "headlines", "text": "The question: answer: me", "title": "A river"}]
    return [write_jsonl(folder / "squad.jsonl", squad), write_jsonl(folder / "titles.jsonl", titles)]


def run(base: Path, adapter: Path, folder: Path, paths: list[Path], **changes: Any) -> tuple[list[Any], Path]:
    options = {"data_paths": [str(path) for path in paths], "ground_truth_file_path": None} | changes
    evaluation.evaluate(load(evaluation_config(base, adapter, folder, folder, **options), Evaluation))
    results = folder / "results"
    return [json.loads(line) for line in (results / "predictions.jsonl").read_text().split("\n")[:-1]], results


def test_nothing_is_searched_for(tiny_base: Path, adapter: Path, answering: list[str], tmp_path: Path) -> None:
    answering += [" the answer: is answer: this", " answer:", " A\nriver"]
    for split_string in ("answer:", "", "nowhere"):
        records, results = run(tiny_base, adapter, tmp_path, two_tasks(tmp_path), split_string=split_string)
        assert [record["prediction"] for record in records] == ["the answer: is answer: this", "answer:", "A river"]
        lines = (results / "predictions.txt").read_text().split("\n")
        assert lines[2] == "The question: answer: me -> A river"
        assert lines[0] == TEMPLATE.format(**squad_records(1)[0] | {"answer": answering[0].strip()})
        assert lines[3:] == [""]


def test_answers_of_the_data_score_each_task_by_its_own(
    tiny_base: Path, adapter: Path, answering: list[str], tmp_path: Path
) -> None:
    answering += [squad_records(2)[0]["answer"], "wrong", "river"]
    records, results = run(tiny_base, adapter, tmp_path, two_tasks(tmp_path))
    assert records[2]["answers"] == ["A river"]
    titles = tmp_path / "titles.jsonl"
    own = {"record": f"{titles}:1", "taskname": "headlines", "text": "The question: answer: me"}
    assert records[2] == own | {"answers": ["A river"], "prediction": "river"}
    assert not any(None in record.values() for record in records)
    metric = json.loads((results / "squad_metric.json").read_text())
    assert metric == {"exact_match": pytest.approx(200 / 3), "f1": pytest.approx(200 / 3), "total": 3}


def test_without_labels_there_are_predictions_and_no_scores(
    tiny_base: Path, adapter: Path, answering: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering += ["one", "two"]
    questions = [{k: v for k, v in record.items() if k != "answer"} for record in squad_records(2)]
    results = tmp_path / "results"
    results.mkdir()
    (results / "squad_metric.json").write_text("of an earlier run")
    summary = {"summary_path": str(tmp_path / "summary.json")}
    records, _ = run(tiny_base, adapter, tmp_path, [write_jsonl(tmp_path / "q.jsonl", questions)], **summary)
    assert [record["prediction"] for record in records] == ["one", "two"]
    assert not any("answers" in record or None in record.values() for record in records)
    assert not (results / "squad_metric.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"adapter_path": str(adapter)}
    assert "2 predictions, not scored" in capsys.readouterr().out


def test_the_answer_in_the_data_is_never_shown_to_the_model(
    tiny_base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with nemo_compat: NeMo fills in a record's answer."""
    prompts: list[str] = []

    def generate(base: Any, samples: Any, *_: Any, **__: Any) -> list[list[int]]:
        prompts.extend(base.tokenizer.ids_to_text(sample.input_ids) for sample in samples)
        return [[] for _ in samples]

    monkeypatch.setattr(evaluation, "generate", generate)
    path = write_jsonl(tmp_path / "q.jsonl", [record | {"answer": "zzz"} for record in squad_records(2)])
    for nemo_compat in (False, True):
        run(tiny_base, adapter, tmp_path, [path], nemo_compat=nemo_compat)
    assert len(prompts) == 4
    assert not any("zzz" in prompt for prompt in prompts)


def test_a_text_file_named_as_another_output_is_refused(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("predictions.jsonl", "base_squad_metric.json"):
        with pytest.raises(UserError, match=r"name it predictions\.txt"):
            run(tiny_base, adapter, tmp_path, two_tasks(tmp_path), pred_file_path=str(tmp_path / name))


def test_files_that_cannot_all_be_written_leave_the_earlier_ones(
    tiny_base: Path, adapter: Path, answering: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering += ["one", "two", "three"]
    run(tiny_base, adapter, tmp_path, two_tasks(tmp_path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    answering[0] = "other"

    def full(text: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions, "one_line", full)
    with pytest.raises(OSError, match="No space"):
        run(tiny_base, adapter, tmp_path, two_tasks(tmp_path))
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before


def test_no_file_and_numbers_out_of_range_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent.nemo"
    with pytest.raises(UserError, match="data_paths: must not be empty"):
        run(absent, absent, tmp_path, [])
    config = evaluation_config(absent, absent, tmp_path, tmp_path)
    config["inference"] |= {"greedy": False, "temperature": 0.0}
    with pytest.raises(UserError, match=r"inference\.temperature: must be above 0"):
        evaluation.evaluate(load(config, Evaluation))


def test_no_kind_of_line_break_parts_a_record() -> None:
    for line_break in ("\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"):
        assert one_line(f"a{line_break}b") == "a b"
    assert one_line("") == ""
