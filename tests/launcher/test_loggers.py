# SPDX-License-Identifier: Apache-2.0
"""Loggers and reports at launch: W&B and MLflow need their libraries, a report is an HTML file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

MLFLOW = "adapter_learning.exp_manager.create_mlflow_logger"
WANDB = "adapter_learning.exp_manager.create_wandb_logger"


@pytest.fixture
def broken_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb is absent; mlflow is installed, but without something that it imports."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "mlflow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python takes for an absent module
    (tmp_path / "broken/mlflow").mkdir(parents=True)
    (tmp_path / "broken/mlflow/__init__.py").write_text("import a_module_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path / "broken")


@pytest.mark.usefixtures("broken_library")
def test_chosen_loggers_must_be_importable(launch: Launch, workplace: Workplace) -> None:
    offline = "++adapter_learning.exp_manager.wandb_logger_kwargs.mode=offline"
    result = launch(*workplace.arguments, f"++{MLFLOW}=True", f"{WANDB}=True", offline, "debug=True")
    assert result.status == 2
    assert f"{WANDB} (command line): wandb is not installed\n    -> pip install wandb, or {WANDB}=False" in result.err
    assert f"{MLFLOW} (command line): mlflow is installed but cannot be imported: No module named" in result.err
    assert "Traceback" not in result.err
    assert launch(*workplace.arguments, f"++{MLFLOW}=False", f"{WANDB}=False", "debug=True").status == 0


def test_a_report_is_an_html_file(launch: Launch, workplace: Workplace) -> None:
    given = [*workplace.arguments, "stages=[evaluation]", "evaluation=adapter_gpt3/squad"]
    key = "evaluation.report_path"
    result = launch(*given, f"++{key}={workplace.root}/report.txt", "debug=True")
    assert result.status == 2
    assert f"-> {key}={workplace.root}/report.html" in result.err


def test_a_launch_without_the_library_is_refused(
    launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    result = launch(*workplace.arguments, "+adapter_learning.model.data.near_duplicates=0.9", "debug=True")
    assert result.status == 2
    assert "adapter_learning.model.data.near_duplicates (command line): datasketch is not installed" in result.err
    assert "pip install 'nemo-adapter-launcher[near-duplicates]'" in result.err
