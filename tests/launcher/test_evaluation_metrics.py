# SPDX-License-Identifier: Apache-2.0
"""The launcher checks the metrics of an evaluation before it queues the job."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import Launch
from tests.workplace import Workplace

pytestmark = pytest.mark.unit


def launched(launch: Launch, workplace: Workplace, metrics: str) -> tuple[int, str]:
    values = {
        "language_model_path": workplace.base_model,
        "trainer.accelerator": "cpu",
        "pred_file_path": workplace.root / "out" / "predictions.txt",
        "metrics": metrics,
    }
    given = [f"evaluation.{key}={value}" for key, value in values.items()]
    result = launch(*workplace.arguments, "stages=[adapter_learning,evaluation]", *given, "debug=True")
    return result.status, result.err


def test_names_are_checked_all_at_once(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.root)
    (workplace.root / "mine.py").write_text("raise SystemExit\ndef score(prediction, answers): return 1\n")
    status, said = launched(launch, workplace, "[acuracy,f1,f1,mine:scor,bleu]")
    assert status == 2
    assert "evaluation.metrics (command line): no metric is named 'acuracy'" in said
    assert "did you mean 'accuracy'?" in said
    assert "'f1' is named twice" in said
    assert "mine.py has no function 'scor'" in said
    assert "did you mean 'score'?" in said
    assert launched(launch, workplace, "[accuracy,f1,mine:score,bleu]")[0] == 0
    assert launched(launch, workplace, "null")[0] == 0
    status, said = launched(launch, workplace, "[]")
    assert status == 2
