# SPDX-License-Identifier: Apache-2.0
"""`trainer.tf32`: set before the base is used, off unless asked for, and part of what a result depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.config.resume_rules import refused_changes
from nemo_launcher.evaluation import answer_keys
from nemo_launcher.families import base as base_module
from nemo_launcher.runtime.precision import allow_tf32
from tests.engine import adapted
from tests.jobs import evaluation_config, job_config, run_script
from tests.methods import model_section

SAID = "TF32 while the base is loaded: "


def say_while_loading() -> None:
    describe = base_module.describe_base

    def says(*given: Any) -> base_module.DescribedBase:
        print(f"{SAID}{torch.backends.cuda.matmul.allow_tf32}", flush=True)
        return describe(*given)

    base_module.describe_base = says
    torch.backends.cuda.matmul.allow_tf32 = True


@pytest.mark.integration
@pytest.mark.parametrize("trainer", [{}, {"tf32": False}, {"tf32": True}], ids=str)
def test_jobs_set_it(trainer: dict[str, bool], one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    expected = f"{SAID}{trainer.get('tf32', False)}"
    changes = {"trainer.max_epochs": 1} | {f"trainer.{key}": value for key, value in trainer.items()}
    trained = run_script("train", job_config(tiny_base, data, tmp_path, changes), tmp_path, before=say_while_loading)
    assert trained.status == 0, trained.output
    assert expected in trained.output
    config = evaluation_config(tiny_base, one_epoch / "results/adapter.nemo", data, tmp_path / "evaluation")
    config["trainer"] |= trainer
    evaluated = run_script("evaluate", config, tmp_path, before=say_while_loading)
    assert evaluated.status == 0, evaluated.output
    assert expected in evaluated.output


@pytest.mark.unit
def test_it_cannot_change_within_a_training_but_may_be_left_out() -> None:
    assert refused_changes({"trainer": {}}, {"trainer": {"tf32": True}}) == ["trainer.tf32"]


@pytest.mark.unit
def test_answers_are_kept_apart(tiny_base: Path) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"))
    without = answer_keys.scores_key(base, {}, [], 1)
    try:
        allow_tf32(True)
        assert answer_keys.scores_key(base, {}, [], 1) != without
    finally:
        allow_tf32(False)
    assert answer_keys.scores_key(base, {}, [], 1) == without
