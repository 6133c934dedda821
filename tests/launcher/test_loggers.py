# SPDX-License-Identifier: Apache-2.0
"""Loggers and reports at launch: TensorBoard is on, MLflow needs its library, a report is an HTML file."""

from __future__ import annotations

import importlib.util

import pytest

from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

MLFLOW = "adapter_learning.exp_manager.create_mlflow_logger"


def test_mlflow_must_be_installed(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else found(name))
    result = launch(*workplace.arguments, f"++{MLFLOW}=True", "debug=True")
    assert result.status == 2
    assert f"{MLFLOW} (command line): mlflow is not installed" in result.err
    assert launch(*workplace.arguments, f"++{MLFLOW}=False", "debug=True").status == 0


def test_a_report_is_an_html_file(launch: Launch, workplace: Workplace) -> None:
    given = [*workplace.arguments, "stages=[evaluation]", "evaluation=adapter_gpt3/squad"]
    key = "evaluation.report_path"
    result = launch(*given, f"++{key}={workplace.root}/report.txt", "debug=True")
    assert result.status == 2
    assert f"-> {key}={workplace.root}/report.html" in result.err
