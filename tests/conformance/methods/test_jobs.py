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


@pytest.mark.parametrize("method", METHODS)
def test_trained_evaluated_and_asked(
    method: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_squad(tmp_path / "data")
    block = model_section(method).get("adapter_tuning")
    job = run_script("train", training(method, tiny_base, data, tmp_path, {"trainer.max_steps": 3}), tmp_path)
    assert job.status == 0, job.output
    path = tmp_path / "results/adapter.nemo"
    base = load_base(tiny_base)
    adapters, config = load_adapter(path, base)
    assert (config.get("adapter_tuning") or {}).get("type") == (block or {}).get("type")
    assert adapters.method.name == method
    summary = json.loads((tmp_path / "results/training_summary.json").read_text())
    assert summary["trainable_parameters"] == adapters.num_parameters()
    evaluation = evaluation_config(tiny_base, path, data, tmp_path / "eval")
    job = run_script("evaluate", evaluation, tmp_path / "eval")
    assert job.status == 0, job.output
    predictions = [json.loads(line) for line in (tmp_path / "eval/results/predictions.jsonl").read_text().splitlines()]
    asked = [{key: value for key, value in record.items() if key != "answer"} for record in squad_records(6, seed=1)]
    questions = write_jsonl(tmp_path / "questions.jsonl", asked)
    assert main(["generate", "--base", str(tiny_base), "--adapter", str(path), "--jsonl", str(questions)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(predictions) == 6


@pytest.mark.parametrize("method", METHODS)
def test_a_job_goes_on_as_if_it_had_not_stopped(method: str, tiny_base: Path, tmp_path: Path) -> None:
    """Four steps in one start equal four steps in two starts."""
    data = write_squad(tmp_path / "data")
    changes = {"trainer.max_epochs": -1, "trainer.val_check_interval": 2, "model.optim.sched": None}
    states = {}
    for name, starts in {"whole": (4,), "parts": (2, 4)}.items():
        for steps in starts:
            config = training(method, tiny_base, data, tmp_path / name, changes | {"trainer.max_steps": steps})
            job = run_script("train", config, tmp_path / name)
            assert job.status == 0, job.output
        states[name] = load_adapter(tmp_path / name / "results/adapter.nemo", load_base(tiny_base))[0].state_dict()
    torch.testing.assert_close(states["parts"], states["whole"], rtol=0, atol=0)
