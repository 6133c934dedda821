# SPDX-License-Identifier: Apache-2.0
"""The reports that jobs leave in their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.reports.report import write_report
from nemo_launcher.reports.runs import find_runs
from nemo_launcher.runtime.curve_file import read_curve
from tests.engine import write_squad
from tests.jobs import evaluation_config, job_config, run_script
from tests.reports.pages import Page

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and an evaluation of its adapter, compared with the base."""
    folder = tmp_path_factory.mktemp("jobs")
    data = write_squad(folder / "data")
    training = job_config(tiny_base, data, folder / "training")
    job = run_script("train", training, folder / "training")
    assert job.status == 0, job.output
    assert f"report: {folder}/training/results/report.html" in job.output
    changes: dict[str, Any] = {"compare_with_base": True, "summary_path": str(folder / "evaluation/summary.json")}
    changes["training_summary_path"] = str(folder / "training/results/training_summary.json")
    adapter = folder / "training/results/adapter.nemo"
    section = evaluation_config(tiny_base, adapter, data, folder / "evaluation", **changes)
    job = run_script("evaluate", section, folder / "evaluation")
    assert job.status == 0, job.output
    return folder


def test_the_report_of_a_training_has_curves_speed_and_provenance(folder: Path) -> None:
    results = folder / "training/results"
    page = Page.read(results / "report.html")
    assert page.headings[0] == "Training: squad_tiny"
    assert {"Curves", "Speed and memory", "Lengths", "Commands", "Configuration", "Provenance"} <= {*page.headings}
    summary = json.loads((results / "training_summary.json").read_text())
    assert page.facts["trained parameters"].startswith(f"{summary['trainable_parameters']:,} (")
    assert page.facts["steps"] == str(summary["steps"])
    provenance = json.loads((results / "provenance.json").read_text())
    assert page.facts["base, fingerprint of its weights"] == provenance["base"]["weights"]
    assert sum(provenance["lengths"]["counts"]) == provenance["samples"]["train_ds"]
    curve = read_curve(results / "training_curve.jsonl")
    assert curve is not None
    assert [point.step for point in curve.points] == list(range(1, summary["steps"] + 1))
    best = min(each.val_loss for each in curve.validations)
    assert best == pytest.approx(summary["best_val_loss"], rel=1e-6)  # Lightning keeps metrics in fp32


def test_the_report_of_an_evaluation_compares_base_and_adapter(folder: Path) -> None:
    page = Page.read(folder / "evaluation/results/report.html")
    assert "Base against adapter on the same questions" in page.headings
    assert "Curves" in page.headings  # of the training that the evaluation names
    rows = page.tables["Figures with 95% intervals"]
    assert {(row[0], row[1]) for row in rows} >= {("exact match", "frozen base"), ("exact match", "base + adapter")}
    assert len(page.tables["Questions, right answers and predictions"]) == 6


def test_reports_are_made_anew_where_the_runs_are_now(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (folder / "training").rename(moved)
    try:
        (moved / "results/report.html").unlink()
        (run,) = find_runs([moved])
        assert write_report(run) == moved / "results/report.html"
        assert "Curves" in Page.read(moved / "results/report.html").headings
    finally:
        moved.rename(folder / "training")
