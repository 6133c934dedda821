# SPDX-License-Identifier: Apache-2.0
"""Every adapter method in a training job, a second start, an evaluation and `nemo-launcher generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.cli import main
from nemo_launcher.families.base import load_base
from tests.engine import squad_records, write_jsonl, write_squad
from tests.jobs import evaluation_config, job_config, run_script
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.integration


def training(method: str, base: Path, data: Path, results: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a training job's section with only the method's example settings."""
    config = job_config(base, data, results, changes)
    config["model"] = {key: value for key, value in config["model"].items() if key != "adapter_tuning"}
    config["model"] |= {key: value for key, value in model_section(method).items() if key != "seed"}
    return config


CHANGES = {"trainer.max_epochs": -1, "trainer.val_check_interval": 2, "model.optim.sched": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(method: str, tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of four steps in one start. Treat as read-only."""
    folder = tmp_path_factory.mktemp("trained")
    job = run_script("train", training(method, tiny_base, data, folder, CHANGES | {"trainer.max_steps": 4}), folder)
    assert job.status == 0, job.output
    return folder


def test_trained_evaluated_and_asked(
    method: str, trained: Path, tiny_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = model_section(method).get("adapter_tuning")
    path = trained / "results/adapter.nemo"
    base = load_base(tiny_base)
    adapters, config = load_adapter(path, base)
    assert (config.get("adapter_tuning") or {}).get("type") == (block or {}).get("type")
    assert adapters.method.name == method
    summary = json.loads((trained / "results/training_summary.json").read_text())
    assert summary["trainable_parameters"] == adapters.num_parameters()
    job = run_script("evaluate", evaluation_config(tiny_base, path, data, tmp_path), tmp_path)
    assert job.status == 0, job.output
    predictions = [json.loads(line) for line in (tmp_path / "results/predictions.jsonl").read_text().splitlines()]
    asked = [{key: value for key, value in record.items() if key != "answer"} for record in squad_records(6, seed=1)]
    questions = write_jsonl(tmp_path / "questions.jsonl", asked)
    assert main(["generate", "--base", str(tiny_base), "--adapter", str(path), "--jsonl", str(questions)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(predictions) == 6


def test_a_job_goes_on_as_if_it_had_not_stopped(
    method: str, trained: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Four steps in two starts, and in one."""
    for steps in (2, 4):
        config = training(method, tiny_base, data, tmp_path, CHANGES | {"trainer.max_steps": steps})
        job = run_script("train", config, tmp_path)
        assert job.status == 0, job.output
    parts, whole = (
        load_adapter(folder / "results/adapter.nemo", load_base(tiny_base))[0].state_dict()
        for folder in (tmp_path, trained)
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
