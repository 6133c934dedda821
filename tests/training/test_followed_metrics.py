# SPDX-License-Identifier: Apache-2.0
"""Trainings whose checkpoints and early stopping follow a metric of answers to validation records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.config.load import load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.evaluation.run import evaluate
from nemo_launcher.training.checkpoint_file import read_checkpoint
from tests.engine import write_jsonl
from tests.jobs import Job, evaluation_config, job_config, run_script
from tests.training.runs import adapter_of, checkpoints_of, kill_at_step, last_checkpoint_of, summary_of
from tests.world import run_job

pytestmark = pytest.mark.integration

COLOURS = ["a", "b", "c"]
TEMPLATE = {
    "taskname": "colours",
    "prompt_template": "number {number} is {colour}",
    "answer_field": "colour",
    "answer_only_loss": True,
    "choices": COLOURS,
}
SAVED = "exp_manager.checkpoint_callback_params"
STOPPING = "exp_manager.early_stopping_callback_params"
ACCURACY = {f"{SAVED}.monitor": "accuracy", f"{SAVED}.mode": "max"}


def config_of(base: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job of ten epochs of nine steps; its validation records are sorted by their answers."""
    rows = [{"taskname": "colours", "number": f"{i}", "colour": COLOURS[i // 4]} for i in range(12)]
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_jsonl(data / "squad_train.jsonl", rows * 3)
    write_jsonl(data / "squad_val.jsonl", rows)
    plain = {
        "model.adapter_tuning.adapter_dim": 16,
        "model.task_templates": [TEMPLATE],
        "model.new_tasks": ["colours"],
        "model.optim.lr": 0.05,
        "trainer.max_epochs": 10,
        "trainer.val_check_interval": 1.0,
        f"{SAVED}.save_top_k": 1,
        f"{SAVED}.filename": None,
        "exp_manager.validation_metric_params": {"tokens_to_generate": 4, "batch_size": 5},
    }
    return job_config(base, data, folder, plain | dict(changes))


def train(base: Path, folder: Path, changes: Mapping[str, Any], interfere: tuple = ()) -> Job:
    before, args = (interfere[0], interfere[1:]) if interfere else (None, ())
    return run_script("train", config_of(base, folder, changes), folder, before=before, args=args)


def validations_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "results/training_curve.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "val_loss" in line]


def figure_of(base: Path, folder: Path, metric: str) -> float:
    """Return a metric of the job's adapter on its validation records, from an evaluation."""
    options: dict[str, Any] = {"data_paths": [str(folder / "data/squad_val.jsonl")], "ground_truth_file_path": None}
    config = evaluation_config(base, folder / "results/adapter.nemo", folder, folder / "evaluation", **options)
    config |= {"metrics": [metric], "inference": config["inference"] | {"tokens_to_generate": 4}}
    evaluate(load(config, Evaluation))
    found = json.loads(next((folder / "evaluation").rglob("predictions_metrics.json")).read_text())
    value: float = found["adapter"][metric]["value"]
    return value


@pytest.fixture(scope="module")
def by_accuracy(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by_accuracy")
    job = train(tiny_base, folder, ACCURACY)
    assert job.status == 0, job.output
    assert "each validation also answers 12 validation records for accuracy" in job.output
    return folder


def test_the_adapter_is_the_one_of_the_best_accuracy(by_accuracy: Path, tiny_base: Path) -> None:
    validations = validations_of(by_accuracy)
    assert len(validations) == 10
    accuracies = [line["val_accuracy"] for line in validations]
    best = validations[accuracies.index(max(accuracies))]  # the first of equal ones
    assert min(accuracies) < best["val_accuracy"]
    (kept,) = (path for path in checkpoints_of(by_accuracy) if not path.endswith("-last.ckpt"))
    assert kept == f"megatron_gpt_adapter--val_accuracy={best['val_accuracy']:.4f}-epoch={best['step'] // 9 - 1}.ckpt"
    weights = checkpoints_of(by_accuracy)[kept]["state_dict"]
    torch.testing.assert_close(adapter_of(by_accuracy), weights, rtol=0, atol=0)
    assert figure_of(tiny_base, by_accuracy, "accuracy") == pytest.approx(best["val_accuracy"])
    summary = summary_of(by_accuracy)
    assert summary["best_val_accuracy"] == pytest.approx(best["val_accuracy"])
    assert summary["best_val_loss"] == pytest.approx(min(line["val_loss"] for line in validations))


@pytest.mark.parametrize("step", [13, 18, 80])
def test_a_killed_job_goes_on_with_the_best_so_far(
    step: int, by_accuracy: Path, tiny_base: Path, tmp_path: Path
) -> None:
    assert train(tiny_base, tmp_path, ACCURACY, (kill_at_step, step)).status == -9
    job = train(tiny_base, tmp_path, ACCURACY)
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(by_accuracy), rtol=0, atol=0)
    figures = [[(line["step"], line["val_accuracy"]) for line in validations_of(f)] for f in (tmp_path, by_accuracy)]
    assert figures[0] == figures[1]
    for key in ("best_val_accuracy", "best_val_loss"):
        assert summary_of(tmp_path)[key] == summary_of(by_accuracy)[key]
    assert last_checkpoint_of(tmp_path)["best_monitored"] == last_checkpoint_of(by_accuracy)["best_monitored"]


def test_training_is_the_same_whatever_is_followed(by_accuracy: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Answering between the steps changes nothing in them."""
    assert train(tiny_base, tmp_path, {}).status == 0
    losses = [[line["val_loss"] for line in validations_of(folder)] for folder in (tmp_path, by_accuracy)]
    assert losses[0] == losses[1]
    assert "best_val_accuracy" not in summary_of(tmp_path)


@pytest.mark.parametrize("sizes", [{}, {"model.tensor_model_parallel_size": 2}], ids=["replicas", "tensor"])
def test_two_ranks_agree_with_one(sizes: dict[str, Any], by_accuracy: Path, tiny_base: Path, tmp_path: Path) -> None:
    jobs = run_job(2, "train", config_of(tiny_base, tmp_path, {**ACCURACY, **sizes, "trainer.devices": 2}), tmp_path)
    assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
    found = [[line["val_accuracy"] for line in validations_of(folder)] for folder in (tmp_path, by_accuracy)]
    assert found[0] == pytest.approx(found[1])
    assert figure_of(tiny_base, tmp_path, "accuracy") == pytest.approx(max(found[0]))


def test_early_stopping_follows_a_metric_of_its_own(tiny_base: Path, tmp_path: Path) -> None:
    changes = {
        "exp_manager.create_early_stopping_callback": True,
        STOPPING: {"monitor": "val_rank_classification", "mode": "max", "patience": 1, "min_delta": 0.0},
        "trainer.max_epochs": 30,
    }
    job = train(tiny_base, tmp_path, changes)
    assert job.status == 0, job.output
    values = [line["val_rank_classification"] for line in validations_of(tmp_path)]
    assert len(values) < 30
    assert values[-1] <= values[-2]  # the first without an improvement
    assert all(later > earlier for earlier, later in pairwise(values[:-1]))
    (kept,) = (path for path in checkpoints_of(tmp_path) if not path.endswith("-last.ckpt"))
    assert "val_loss=" in kept  # checkpoints still follow the loss


def test_lower_perplexity_is_better_and_records_are_limited(tiny_base: Path, tmp_path: Path) -> None:
    changes = {f"{SAVED}.monitor": "perplexity", "exp_manager.validation_metric_params": {"max_records": 6}}
    job = train(tiny_base, tmp_path, changes)
    assert job.status == 0, job.output
    assert "each validation also answers 6 validation records for perplexity" in job.output
    summary = summary_of(tmp_path)
    lowest = min(line["val_perplexity"] for line in validations_of(tmp_path))
    assert summary["best_val_perplexity"] == pytest.approx(lowest)  # logged figures are fp32
    rows = (tmp_path / "data/squad_val.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data/squad_val.jsonl").write_text("".join(rows[::2]))  # at even distances
    assert figure_of(tiny_base, tmp_path, "perplexity") == pytest.approx(summary["best_val_perplexity"], rel=1e-4)


def test_a_function_of_ones_own_and_a_name_for_its_checkpoints(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short(prediction, answers):\n    return 1 / (1 + len(prediction))\n")
    changes = {f"{SAVED}.monitor": "mine:short", f"{SAVED}.mode": "max", "trainer.max_epochs": 2}
    job = train(tiny_base, tmp_path, changes, (work_in, str(tmp_path)))
    assert job.status == 0, job.output
    assert any("val_mine_short=0." in name for name in checkpoints_of(tmp_path))
    (tmp_path / "mine.py").write_text("def short(prediction, answers):\n    return 7\n")
    again = train(tiny_base, tmp_path / "other", changes, (work_in, str(tmp_path)))
    assert again.status == 2
    assert "exp_manager.checkpoint_callback_params.monitor: mine:short(" in again.output
    assert "Traceback" not in again.output


def work_in(folder: str) -> None:
    import os

    os.chdir(folder)


@pytest.mark.parametrize("value", [True, "0.5", [1]])
def test_a_best_value_of_another_type_is_damage(by_accuracy: Path, tmp_path: Path, value: object) -> None:
    from nemo_launcher.training.checkpoint_content import read_training
    from nemo_launcher.training.checkpoint_file import write_checkpoint
    from nemo_launcher.training.checkpoint_header import DamagedCheckpointError

    (last,) = (by_accuracy / "results/checkpoints").glob("*-last.ckpt")
    write_checkpoint(tmp_path / "a.ckpt", read_checkpoint(last) | {"best_monitored": value})
    with pytest.raises(DamagedCheckpointError, match="best_monitored"):
        read_training(tmp_path / "a.ckpt")
