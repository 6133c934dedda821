# SPDX-License-Identifier: Apache-2.0
"""Preflight of an evaluation: its adapter, its questions, its answers, and what an earlier stage will make."""

from __future__ import annotations

import json

import pytest

from nemo_launcher.checkpoint.archive_writer import write_archive
from tests.archives import ADAPTER, write_base
from tests.methods import LEARNING
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit


def test_an_adapter_that_is_none(launch: Launch, workplace: Workplace):
    restore = f"adapter_learning.model.restore_path={workplace.base_model}"
    result = launch(*workplace.arguments, restore)
    assert "is a base model, not an adapter" in result.err
    adapter = write_base(workplace.root / "adapter.nemo", ADAPTER)
    assert launch(*workplace.arguments, restore.replace("base.nemo", adapter.name), "debug=True").status == 0


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("trained", [True, False])
def test_questions_that_the_adapter_was_not_trained_for(launch: Launch, workplace: Workplace, trained: bool):
    """The adapter exists already, or an earlier stage of this launch trains it."""
    data = workplace.root / "mine.jsonl"
    data.write_text(json.dumps({"taskname": "squad", "title": "t", "question": "q"}) + "\n")
    templates = [{"taskname": "squad", "prompt_template": "{context} {question} {answer}", "answer_field": "answer"}]
    adapter = write_base(workplace.root / "adapter.nemo", ADAPTER | {"task_templates": templates})
    fine = workplace.root / "fine.jsonl"
    fine.write_text(json.dumps({"taskname": "squad", "context": "c", "question": "q", "answer": "a"}) + "\n")
    training = [f"adapter_learning.model.data.{key}=[{fine}]" for key in ("train_ds", "validation_ds")]
    files = [f"evaluation.data_paths=[{data}]", f"evaluation.ground_truth_file_path={data}"]
    chosen = [f"evaluation.adapter_model_file={adapter}", "stages=evaluation"]
    result = launch(
        *workplace.arguments,
        *training,
        *files,
        *(chosen if trained else ["stages=[adapter_learning,evaluation]"]),
        f"evaluation.language_model_path={workplace.base_model}",
        "debug=True",
    )
    assert result.err.startswith("2 mistakes;"), result.err
    assert f"evaluation.data_paths (command line): {data}:1: no field 'context'" in result.err
    assert f"evaluation.ground_truth_file_path (command line): {data}:1: has no 'answer'" in result.err


def test_an_evaluation_is_told_of_the_base_that_the_training_names(launch: Launch, workplace: Workplace):
    base = f"adapter_learning.model.language_model_path={workplace.base_model}"
    absent = "evaluation.language_model_path=/no/base.nemo"
    result = launch(*workplace.arguments, "stages=[adapter_learning,evaluation]", base, absent)
    assert f"evaluation.language_model_path={workplace.base_model}" in result.err


def test_answers_that_are_absent_may_be_those_of_the_questions(launch: Launch, workplace: Workplace):
    absent = ["evaluation.run.task_name=mine", "evaluation.ground_truth_file_path=/no/answers.jsonl"]
    result = launch(*workplace.arguments, "stages=[adapter_learning,evaluation]", *absent)
    assert "data file /no/answers.jsonl does not exist" in result.err
    assert "evaluation.ground_truth_file_path=null" in result.err


@pytest.mark.parametrize("right", LEARNING)
def test_an_evaluation_of_another_method(right: str, launch: Launch, workplace: Workplace):
    adapter = workplace.root / "trained.nemo"
    tuning = {"adapter_tuning": {"type": "parallel_adapter", "adapter_dim": 4}} if right == "adapter" else {}
    write_archive(adapter, {"language_model_path": str(workplace.base_model), **tuning}, {"model_weights.ckpt": b"x"})
    (workplace.root / "test.jsonl").write_text('{"taskname": "squad", "context": "c", "question": "q"}\n')
    arguments = [
        *workplace.arguments[:2],
        "stages=[evaluation]",
        f"evaluation.language_model_path={workplace.base_model}",
        f"evaluation.adapter_model_file={adapter}",
        f"evaluation.data_paths=[{workplace.root}/test.jsonl]",
        "evaluation.ground_truth_file_path=null",
        "evaluation.trainer.accelerator=cpu",
        "evaluation.trainer.devices=1",
        "debug=True",
    ]
    (wrong,) = {*LEARNING} - {right}
    told = launch(*arguments, f"evaluation={wrong}_gpt3/squad")
    assert told.status == 2
    assert f"-> evaluation={right}_gpt3/squad" in told.err
    accepted = launch(*arguments, f"evaluation={right}_gpt3/squad")
    assert accepted.status == 0, accepted.err
    (config,) = workplace.results.rglob("eval_*_hydra.yaml")
    assert f"method: {right}\n" in config.read_text()  # the job checks the file that exists then


@pytest.mark.parametrize("right", LEARNING)
def test_an_evaluation_of_what_a_stage_of_the_other_method_makes(right: str, launch: Launch, workplace: Workplace):
    adapter = workplace.root / "out/trained.nemo"
    learning = f"{right}_learning"
    arguments = [
        *workplace.arguments[:2],
        f"stages=[{learning},evaluation]",
        f"{learning}.model.language_model_path={workplace.base_model}",
        f"{learning}.model.nemo_path={adapter}",
        f"{learning}.trainer.devices=1",
        f"{learning}.trainer.accelerator=cpu",
        f"evaluation.language_model_path={workplace.base_model}",
        f"evaluation.adapter_model_file={adapter}",
        "evaluation.trainer.accelerator=cpu",
        "debug=True",
    ]
    (wrong,) = {*LEARNING} - {right}
    told = launch(*arguments, f"evaluation={wrong}_gpt3/squad")
    assert told.status == 2
    assert f"{adapter} will contain" in told.err
    assert f"-> evaluation={right}_gpt3/squad" in told.err
    accepted = launch(*arguments, f"evaluation={right}_gpt3/squad")
    assert accepted.status == 0, accepted.err


@pytest.mark.parametrize("trained", ["squad", "unlike"])
def test_an_adapter_that_is_not_there(trained: str, launch: Launch, workplace: Workplace):
    """The task's name is misspelled, or no such adapter was trained."""
    adapter = workplace.results / f"gpt3_5b/adapter_learning_{trained}/results/megatron_gpt_adapter.nemo"
    adapter.parent.mkdir(parents=True)
    write_archive(adapter, ADAPTER, {"model_weights.ckpt": b"x"})
    base = f"evaluation.language_model_path={workplace.base_model}"
    told = launch(*workplace.arguments, "stages=evaluation", base, "evaluation.run.task_name=sqaud", "debug=True")
    (told_of,) = [part for part in told.err.split("\n\n") if part.startswith("evaluation.adapter_model_file ")]
    name = f"evaluation.adapter_model_file={adapter}"
    assert told_of.rpartition("-> ")[2].strip().endswith(name if trained == "squad" else "evaluation]"), told.err


def test_a_summary_of_another_kind_is_refused_at_launch(launch: Launch, workplace: Workplace):
    (workplace.root / "progress.json").write_text('{"step": 1, "max_steps": 2}')
    (workplace.root / "training_summary.json").write_text('{"trainable_parameters": 5}')
    key = "evaluation.training_summary_path"
    arguments = [
        *workplace.arguments,
        "stages=[adapter_learning,evaluation]",
        f"evaluation.language_model_path={workplace.base_model}",
        "evaluation.trainer.accelerator=cpu",
        "debug=True",
    ]
    told = launch(*arguments, f"{key}={workplace.root}/progress.json")
    assert told.status == 2
    assert f"-> {key}={workplace.root}/training_summary.json; or for none: {key}=null" in told.err
    accepted = launch(*arguments, f"{key}={workplace.root}/training_summary.json")
    assert accepted.status == 0, accepted.err
