# SPDX-License-Identifier: Apache-2.0
"""Complete evaluation jobs: their output files and contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.evaluation.squad_score import SUMMARY_KEYS
from nemo_launcher.evaluation.squad_score import evaluate as squad_score
from tests.engine import TEMPLATE, write_jsonl
from tests.jobs import evaluation_config, run_script

pytestmark = pytest.mark.integration


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_job_leaves_predictions_metric_and_summary(
    tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    figures = ("trainable_parameters", "trainable_share", "samples_per_second", "tokens_per_second", "peak_memory_gib")
    training = dict.fromkeys(figures, 1) | {"steps": 8}
    (tmp_path / "training_summary.json").write_text(json.dumps(training))
    changes = {"summary_path": str(tmp_path / "summary.json"), "compare_with_base": True}
    changes["training_summary_path"] = str(tmp_path / "training_summary.json")
    job = run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path, **changes), tmp_path)
    assert job.status == 0, job.output

    truths = lines_of(data / "squad_test_ground_truth.jsonl")
    results = tmp_path / "results"
    for name in ("", "base_"):
        predictions = lines_of(results / f"{name}predictions.jsonl")
        assert [record["record"].rpartition(":")[2] for record in predictions] == list("123456")
        assert [record["id"] for record in predictions] == [truth["id"] for truth in truths]
        assert [record["question"] for record in predictions] == [truth["question"] for truth in truths]
        assert [record["answers"] for record in predictions] == [truth["answer"] for truth in truths]
        metric = json.loads((results / f"{name}squad_metric.json").read_text())
        score = squad_score([record["prediction"] for record in predictions], [truth["answer"] for truth in truths])
        assert metric == {name: 100 * value for name, value in score.values.items()} | {"total": 6}
        lines = (results / f"{name}predictions.txt").read_bytes().decode().split("\n")[:-1]
        assert len(lines) == 6
        for line, record, truth in zip(lines, predictions, truths, strict=True):
            assert line.startswith(TEMPLATE.format(**truth | {"answer": ""}).strip())
            assert line.split("answer:")[-1].strip() == record["prediction"]
    assert (results / "predictions.txt").read_text() != (results / "base_predictions.txt").read_text()

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["base"]) == set(summary["adapter"]) == {*SUMMARY_KEYS.values(), "questions"}
    assert summary["adapter"]["questions"] == 6
    assert summary.items() >= training.items()
    assert summary["adapter_path"] == str(adapter)
    assert "frozen base" in job.output
    assert str(adapter) in job.output


def test_without_extras_the_documented_files_alone_are_left(
    tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    job = run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path), tmp_path)
    assert job.status == 0, job.output
    names = {path.name for path in (tmp_path / "results").iterdir()}
    scored = {"squad_metric.json", "predictions_scores.jsonl", "predictions_metrics.json"}
    assert names == {"predictions.txt", "predictions.jsonl", "provenance.json", "report.html"} | scored


def test_a_perfect_prediction_scores_one_hundred(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    """With the predictions as ground truth, the path from tokens to the metric loses nothing."""
    assert run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path), tmp_path).status == 0
    predictions = lines_of(tmp_path / "results/predictions.jsonl")
    truths = [{"answer": ["something else", record["prediction"]]} for record in predictions]
    truth_path = write_jsonl(tmp_path / "truth.jsonl", truths)
    config = evaluation_config(tiny_base, adapter, data, tmp_path / "again", ground_truth_file_path=str(truth_path))
    assert run_script("evaluate", config, tmp_path).status == 0
    metric = json.loads((tmp_path / "again/results/squad_metric.json").read_text())
    assert metric["exact_match"] == 100


def test_batch_size_changes_nothing(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    config = evaluation_config(tiny_base, adapter, data, tmp_path / "one")
    assert run_script("evaluate", config, tmp_path / "one").status == 0
    config = evaluation_config(tiny_base, adapter, data, tmp_path / "two")
    config["inference"]["batch_size"] = 1
    assert run_script("evaluate", config, tmp_path / "two").status == 0
    one, two = (tmp_path / name / "results/predictions.txt" for name in ("one", "two"))
    assert one.read_text() == two.read_text()


def test_sampled_predictions_are_repeatable(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        config = evaluation_config(tiny_base, adapter, data, tmp_path / name)
        config["inference"] |= {"greedy": False, "top_k": 5, "temperature": 2.0}
        assert run_script("evaluate", config, tmp_path / name).status == 0
        texts.append((tmp_path / name / "results/predictions.txt").read_text())
    assert texts[0] == texts[1]


def test_a_file_that_is_no_summary_of_a_training_is_refused_at_once(
    tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "training_summary.json").write_text(json.dumps({"trainable_parameters": 5}))
    own = {"trainable_parameters": 5, "adapter": {"em": 1.0, "f1": 1.0, "questions": 6}}
    for name, content in {"progress.json": {"step": 8, "max_steps": 8}, "summary.json": own}.items():
        path = tmp_path / name
        path.write_text(json.dumps(content))
        changes = {"summary_path": str(tmp_path / "out.json"), "training_summary_path": str(path)}
        job = run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path, **changes), tmp_path)
        assert job.status == 2
        assert f"{path}: is not the summary of a training" in job.output
        assert f"training_summary_path={tmp_path}/training_summary.json" in job.output
        assert "loading the base model" not in job.output


def test_a_summary_that_is_absent_is_told(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    changes = {"training_summary_path": str(tmp_path / "absent.json")}
    job = run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path, **changes), tmp_path)
    assert job.status == 0, job.output
    assert f"training_summary_path: {tmp_path}/absent.json does not exist" in job.output


def test_an_adapter_of_the_other_method_is_refused_in_the_job_too(
    tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    config = evaluation_config(tiny_base, adapter, data, tmp_path)
    config["run"] |= {"method": "ia3", "model_family": "llama"}
    job = run_script("evaluate", config, tmp_path)
    assert job.status == 2
    assert f"adapter_model_file: {adapter} holds adapters, but this evaluation is for IA3" in job.output
    assert "evaluation=adapter_llama/squad" in job.output
    assert "loading the base model" not in job.output


def test_a_data_file_that_was_trained_on_is_told(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    trained = data / "squad_train.jsonl"
    for path, told in ((trained, True), (data / "squad_val.jsonl", False)):
        changes = {"data_paths": [str(path)], "ground_truth_file_path": None}
        job = run_script("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path, **changes), tmp_path)
        assert job.status == 0, job.output
        assert (f"{path}: the adapter was trained on this file" in job.output) is told
