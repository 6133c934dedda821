# SPDX-License-Identifier: Apache-2.0
"""model.data.test_ds: checked with the training, and the data of the evaluation of its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_launcher.config.resume_rules import refused_changes
from nemo_launcher.launcher.data_facts import describe_data
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import AdapterLearning
from tests.archives import ADAPTER, write_base
from tests.engine import squad_records, write_jsonl
from tests.jobs import job_config
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

KEY = "adapter_learning.model.data.test_ds"
BOTH = ["stages=[adapter_learning,evaluation]", "evaluation=adapter_gpt3/squad", "evaluation.trainer.accelerator=cpu"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments for training and validation data, and the test data, some of it without answers."""
    records = [record | {"question": f"which {number}?"} for number, record in enumerate(squad_records(60))]
    write_jsonl(tmp_path / "train.jsonl", records[:40])
    write_jsonl(tmp_path / "val.jsonl", records[40:50])
    asked = [{key: value for key, value in record.items() if key != "answer"} for record in records[50:]]
    write_jsonl(tmp_path / "test.jsonl", asked)
    keys = {"train_ds": "train", "validation_ds": "val"}
    return [f"adapter_learning.model.data.{key}=[{tmp_path / name}.jsonl]" for key, name in keys.items()]


def evaluation_of(workplace: Workplace, *arguments: str, launch: Launch) -> tuple[dict[str, Any], str]:
    base = f"evaluation.language_model_path={workplace.base_model}"
    result = launch(*workplace.arguments, *BOTH, base, *arguments, "debug=True")
    assert result.status == 0, result.err
    (file,) = (path for path in workplace.results.rglob("*_hydra.yaml") if path.name.startswith("eval"))
    return yaml.safe_load(file.read_text()), result.out


def test_it_is_what_the_evaluation_answers(
    launch: Launch, workplace: Workplace, files: list[str], tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    config, out = evaluation_of(workplace, *files, f"{KEY}=[{test}]", launch=launch)
    assert config["data_paths"] == [str(test)]
    assert config["ground_truth_file_path"] is None
    assert f"evaluation: data_paths is the training's model.data.test_ds: {test}" in out


def test_what_the_user_names_is_kept(launch: Launch, workplace: Workplace, files: list[str], tmp_path: Path) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", squad_records(3))
    given = [f"{KEY}=[{tmp_path / 'test.jsonl'}]", f"evaluation.data_paths=[{own}]"]
    config, _ = evaluation_of(workplace, *files, *given, "evaluation.ground_truth_file_path=null", launch=launch)
    assert config["data_paths"] == [str(own)]
    given = [given[0], f"evaluation.ground_truth_file_path={own}"]
    config, _ = evaluation_of(workplace, *files, *given, launch=launch)
    assert (config["data_paths"], config["ground_truth_file_path"]) == ([str(tmp_path / "test.jsonl")], str(own))


@pytest.mark.parametrize("value", ["[]", "null"])
def test_nemos_empty_list_changes_nothing(value: str, launch: Launch, workplace: Workplace, files: list[str]) -> None:
    config, _ = evaluation_of(workplace, *files, f"+{KEY}={value}", launch=launch)
    assert [Path(path).name for path in config["data_paths"]] == ["squad_test.jsonl"]


def test_an_evaluation_alone_takes_it_from_the_archive(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"question": "q"}])
    adapter = write_base(tmp_path / "adapter.nemo", ADAPTER | {"data": {"test_ds": [str(test)]}})
    kept = [text for text in workplace.arguments if not text.startswith("adapter_learning")]
    options = ["stages=[evaluation]", "evaluation=adapter_gpt3/squad", "evaluation.trainer.accelerator=cpu"]
    options += [f"evaluation.language_model_path={workplace.base_model}", f"evaluation.adapter_model_file={adapter}"]
    result = launch(*kept, *options, "debug=True")
    assert f"evaluation: data_paths is the training's model.data.test_ds: {test}" in result.out, result.err


def test_mistakes_in_it_are_found_with_the_training(
    launch: Launch, workplace: Workplace, files: list[str], tmp_path: Path
) -> None:
    result = launch(*workplace.arguments, *files, f"{KEY}=[{tmp_path / 'absent.jsonl'}]", "debug=True")
    assert result.status == 2
    assert f"{KEY} (command line): data file {tmp_path / 'absent.jsonl'} does not exist" in result.err
    (tmp_path / "test.jsonl").write_text('{"taskname": "squad", "context": "c", "quesiton": "q"}\n')
    result = launch(*workplace.arguments, *files, f"{KEY}=[{tmp_path / 'test.jsonl'}]", "debug=True")
    assert "did you mean 'quesiton'?" in result.err
    result = launch(*workplace.arguments, *files, f'{KEY}=["hf:own/qa?spilt=test"]', "debug=True")
    assert f"{KEY} (command line): 'hf:own/qa?spilt=test': no 'spilt'" in result.err


def test_prompts_of_the_training_in_it_are_told(tiny_base: Path, tmp_path: Path) -> None:
    records = [record | {"question": f"which {number}?"} for number, record in enumerate(squad_records(20))]
    write_jsonl(tmp_path / "squad_train.jsonl", records[:15])
    write_jsonl(tmp_path / "squad_val.jsonl", records[15:])
    test = write_jsonl(tmp_path / "test.jsonl", [records[2], records[19]])
    config = job_config(tiny_base, tmp_path, tmp_path, {"model.data.test_ds": [str(test)]})
    stage = AdapterLearning(config, "llama/squad", "/data")
    assert describe_data(stage, [stage], LaunchProbe())[1].startswith(
        "adapter_learning: in the training data: 1 of 2 test prompts"
    )


def test_a_training_that_resumes_may_have_other_test_data() -> None:
    before, after = ({"model": {"data": {"test_ds": value}}} for value in (None, ["/data/test.jsonl"]))
    assert refused_changes(before, after) == []
