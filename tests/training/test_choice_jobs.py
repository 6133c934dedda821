# SPDX-License-Identifier: Apache-2.0
"""A whole training with T-Few's losses, and the evaluation of its adapter by rank classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.config.load import load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.run import evaluate
from nemo_launcher.training.run import train
from tests.engine import write_jsonl
from tests.jobs import evaluation_config, job_config, loaded
from tests.world import run_job

pytestmark = pytest.mark.integration

COLOURS = ["red", "dark blue", "green as grass"]
TEMPLATE = {
    "taskname": "colours",
    "prompt_template": "what is the colour of number {number}? it is {colour}",
    "answer_field": "colour",
    "answer_only_loss": True,
    "choices_field": "colours",
}


SHORT = {"trainer.max_epochs": 2}


def write_data(folder: Path) -> Path:
    """Write squad_train.jsonl and squad_val.jsonl, the names of a job's files, with choices in each record."""
    rows = [
        {"taskname": "colours", "number": f"{i % 12}", "colour": COLOURS[i % 12 // 4], "colours": COLOURS}
        for i in range(36)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "squad_train.jsonl", rows)
    write_jsonl(folder / "squad_val.jsonl", rows[:12])
    return folder


def config_of(base: Path, folder: Path, **loss: bool) -> dict[str, Any]:
    changes = {
        "model.adapter_tuning": None,
        "model.task_templates": [TEMPLATE],
        "model.new_tasks": ["colours"],
        "model.loss": loss,
        "model.optim.lr": 0.05,
        "trainer.max_epochs": 6,
        "trainer.val_check_interval": 1.0,
    }
    return job_config(base, write_data(folder / "data"), folder, changes)


def test_a_training_with_choices_learns_to_rank_them(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base, tmp_path, unlikelihood=True, length_norm=True)
    train(loaded(config))
    adapter = Path(config["model"]["nemo_path"])
    kept = read_adapter(adapter)[0]
    assert kept["loss"] == {"unlikelihood": True, "length_norm": True}
    assert kept["task_templates"][0]["choices_field"] == "colours"
    options: dict[str, Any] = {"data_paths": [str(tmp_path / "data/squad_val.jsonl")], "ground_truth_file_path": None}
    options |= {"compare_with_base": True}
    evaluate(load(evaluation_config(tiny_base, adapter, tmp_path, tmp_path / "evaluation", **options), Evaluation))
    found = json.loads(next((tmp_path / "evaluation").rglob("predictions_metrics.json")).read_text())
    right = {model: found[model]["rank_classification"]["value"] for model in ("base", "adapter")}
    assert right["adapter"] >= right["base"] + 0.25


def curve_of(ranks: int, base: Path, folder: Path, changes: dict[str, Any]) -> list[float]:
    """Train on `ranks` processes; return the losses of training and validation."""
    config: Any = OmegaConf.create(config_of(base, folder, unlikelihood=True, length_norm=True))
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    jobs = run_job(ranks, "train", OmegaConf.to_container(config), folder)
    assert [job.status for job in jobs] == [0] * ranks, [job.output for job in jobs]
    lines = [json.loads(line) for line in (folder / "results/training_curve.jsonl").read_text().splitlines()]
    return [line[key] for line in lines for key in ("loss", "val_loss") if key in line]


@pytest.fixture(scope="module")
def curve_of_one(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return curve_of(1, tiny_base, tmp_path_factory.mktemp("one"), SHORT)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="replicas"),
        pytest.param({"model.tensor_model_parallel_size": 2}, id="tensor"),
        pytest.param({"model.pipeline_model_parallel_size": 2}, id="pipeline"),
    ],
)
def test_two_ranks_agree_with_one(
    sizes: dict[str, Any], curve_of_one: list[float], tiny_base: Path, tmp_path: Path
) -> None:
    curve = curve_of(2, tiny_base, tmp_path, SHORT | {"trainer.devices": 2, **sizes})
    assert len(curve) > 12
    assert curve == pytest.approx(curve_of_one, rel=1e-4)


def test_a_training_tells_the_line_of_a_record_with_wrong_choices(tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base, tmp_path, length_norm=True)
    path = tmp_path / "data/squad_train.jsonl"
    lines = path.read_text().splitlines()
    lines[30] = json.dumps(json.loads(lines[30]) | {"colours": ["red", "yellow"]})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"squad_train.jsonl:31: 'colour' is 'dark blue', which is not one"):
        train(loaded(config))
