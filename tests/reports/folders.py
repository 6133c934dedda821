# SPDX-License-Identifier: Apache-2.0
"""Folders of results as jobs leave them, with contents of the test's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_launcher.files.foreign_yaml import dump_yaml

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "questions": 100}


def evaluation(folder: Path, lines: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """Write an evaluation with these lines of predictions_scores.jsonl; return its folder."""
    results = folder / "results"
    results.mkdir(parents=True)
    data = folder / "test.jsonl"
    data.write_text("{}\n")
    section = {
        "run": {"name": folder.name, "results_dir": str(folder), "task_name": "squad"},
        "pred_file_path": str(results / "predictions.txt"),
        "language_model_path": "/base.nemo",
        "adapter_model_file": "/adapter.nemo",
        "data_paths": [str(data)],
        "ground_truth_file_path": None,
    } | changes
    (folder / f"{folder.name}_hydra.yaml").write_text(dump_yaml(section))
    (results / "predictions_scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {
        "confidence": 0.95,
        "metrics": {"accuracy": {"title": "accuracy", "is_share": True, "higher_is_better": True}},
        "questions": len(lines),
        "base": {"accuracy": FIGURE | {"value": 0.25}},
        "adapter": {"accuracy": FIGURE},
        "difference": {"accuracy": {"value": 0.25, "low": -0.1, "high": 0.4, "better": None}},
    }
    (results / "predictions_metrics.json").write_text(json.dumps(figures))
    return folder


def line(number: int, base: float, adapter: float, prediction: str = "yes", task: str = "squad") -> dict[str, Any]:
    """Return a line of predictions_scores.jsonl."""
    return {
        "question": number,
        "record": f"test.jsonl:{number}",
        "task": task,
        "group": number,
        "answers": ["yes"],
        "base": {"prediction": "no", "scores": {"accuracy": base}},
        "adapter": {"prediction": prediction, "scores": {"accuracy": adapter}},
    }


def with_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write predictions.jsonl of an evaluation's folder; `record` numbers its lines."""
    numbered = [{"record": f"test.jsonl:{number}"} | dict(record) for number, record in enumerate(records, start=1)]
    text = "".join(json.dumps(record) + "\n" for record in numbered)
    (folder / "results/predictions.jsonl").write_text(text)
    return folder
