# SPDX-License-Identifier: Apache-2.0
"""The launcher checks the metrics that checkpoints and early stopping follow, and says what they cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemo_launcher.config.monitored import logged_name, metric_of
from nemo_launcher.evaluation.monitored import monitor_problems
from tests.jobs import loaded
from tests.launcher.conftest import Launch
from tests.launcher.test_training_options import changed
from tests.workplace import Workplace

pytestmark = pytest.mark.unit

SAVED = "exp_manager.checkpoint_callback_params"
STOPPING = "exp_manager.early_stopping_callback_params"
TEMPLATE = "model.task_templates.0"
ACCURACY = {f"{SAVED}.monitor": "accuracy", f"{SAVED}.mode": "max"}
STOPS = {"exp_manager.create_early_stopping_callback": True, STOPPING: {"monitor": "val_f1", "mode": "max"}}


def perplexity(**more: Any) -> dict[str, Any]:
    return {f"{SAVED}.monitor": "perplexity", **{f"model.{key}": value for key, value in more.items()}}


def ranked(**more: Any) -> dict[str, Any]:
    plain = ACCURACY | {f"{SAVED}.monitor": "rank_classification"}
    return plain | {f"model.{key}": value for key, value in more.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ACCURACY,
        ACCURACY | {f"{SAVED}.monitor": "val_macro_f1"},
        STOPS,
        perplexity(),
        ranked(**{"task_templates.0.choices": ["a", "b"]}),
        ranked(**{"task_templates.0.choices_field": "all"}),
        ACCURACY | {"model.tensor_model_parallel_size": 2, "model.pipeline_model_parallel_size": 2},
        {f"{SAVED}.monitor": "nothing", "exp_manager.create_checkpoint_callback": False},
        {STOPPING: {"monitor": "nothing"}},  # without create_early_stopping_callback
        {f"{SAVED}.monitor": "reduced_train_loss", "model.nemo_compat": True},
    ],
)
def test_what_can_be_followed_is_accepted(changes: dict[str, Any]) -> None:
    assert monitor_problems(loaded(changed(changes)).section) == []


@pytest.mark.parametrize(
    ("changes", "where", "fix"),
    [
        ({f"{SAVED}.monitor": "val_los"}, f"{SAVED}.monitor", "val_loss"),
        ({f"{SAVED}.monitor": "acuracy"}, f"{SAVED}.monitor", "accuracy"),
        (STOPS | {f"{STOPPING}.monitor": "f2"}, f"{STOPPING}.monitor", "f1"),
        ({f"{SAVED}.monitor": "accuracy"}, f"{SAVED}.mode", f"{SAVED}.mode=max"),
        ({f"{SAVED}.monitor": "no_such_module:f", f"{SAVED}.mode": "max"}, f"{SAVED}.monitor", "PYTHONPATH"),
        (STOPS | {f"{STOPPING}.mode": "min"}, f"{STOPPING}.mode", f"{STOPPING}.mode=max"),
        (perplexity() | {f"{SAVED}.mode": "max"}, f"{SAVED}.mode", f"{SAVED}.mode=min"),
        (perplexity(tensor_model_parallel_size=2), f"{SAVED}.monitor", "tensor_model_parallel_size=1"),
        (ACCURACY | {f"{TEMPLATE}.answer_field": None}, f"{TEMPLATE}.answer_field", "answer_field: answer"),
        (ranked(), f"{TEMPLATE}.choices", "choices_field"),
        (
            ranked(**{"task_templates.0.choices": ["a", "b"], "pipeline_model_parallel_size": 2}),
            f"{SAVED}.monitor",
            "model.pipeline_model_parallel_size=1",
        ),
        (ACCURACY | {"model.nemo_compat": True}, "model.nemo_compat", "model.nemo_compat=False"),
        (ACCURACY | {"trainer.limit_val_batches": 0}, "trainer.limit_val_batches", "trainer.limit_val_batches=1.0"),
        (
            ACCURACY | {"model.sequence_parallel": True, "model.tensor_model_parallel_size": 2},
            "model.sequence_parallel",
            "model.sequence_parallel=False",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_key_and_a_fix(
    changes: dict[str, Any], where: str, fix: str
) -> None:
    (problem,) = monitor_problems(loaded(changed(changes)).section)
    assert problem.where == where
    assert fix in problem.fix


def test_names_of_metrics_and_of_what_is_logged() -> None:
    assert [metric_of(name) for name in ("val_loss", "lr", None)] == [None, None, None]
    assert [metric_of(name) for name in ("accuracy", "val_accuracy", "val_x:f")] == ["accuracy", "accuracy", "val_x:f"]
    names = [logged_name(name) for name in ("val_loss", "accuracy", "val_accuracy", "a.b:f")]
    assert names == ["val_loss", "val_accuracy", "val_accuracy", "val_a_b_f"]


def test_a_launch_checks_the_metric_and_says_what_it_costs(launch: Launch, workplace: Workplace) -> None:
    record = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}
    given = ["debug=True", "adapter_learning.model.optim.sched.warmup_steps=0"]
    for key, count in (("train_ds", 100), ("validation_ds", 30)):
        path = workplace.root / f"{key}.jsonl"
        path.write_text((json.dumps(record) + "\n") * count)
        given.append(f"adapter_learning.model.data.{key}=[{path}]")
    top = f"adapter_learning.{SAVED}"
    result = launch(*workplace.arguments, *given, f"{top}.monitor=accuracy")
    assert result.status == 2
    assert f"{top}.mode" in result.err
    given += [f"{top}.monitor=accuracy", f"{top}.mode=max"]
    result = launch(*workplace.arguments, *given)
    assert result.status == 0, result.err
    assert "answers of at most 30 tokens to 30 of 30 validation records for accuracy" in result.out
    result = launch(*workplace.arguments, *given, "adapter_learning.exp_manager.validation_metric_params.max_records=7")
    assert "to 7 of 30 validation records for accuracy" in result.out
