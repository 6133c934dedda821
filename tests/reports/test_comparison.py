# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: the order, what varies, verdicts from paired questions, seeds, the verb."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.cli import main
from nemo_launcher.files.foreign_yaml import dump_yaml
from nemo_launcher.reports.comparison import comparison_page, text_table
from nemo_launcher.reports.leaderboard import Comparison, compare
from nemo_launcher.reports.runs import find_runs
from tests.reports.folders import evaluation, line
from tests.reports.pages import Page

pytestmark = pytest.mark.unit


def run(folder: Path, right: int, *, of: int = 100, task: str = "squad", **changes: Any) -> Path:
    """Write an evaluation with `right` of `of` questions right."""
    evaluation(folder, [line(number, 0, float(number <= right), task=task) for number in range(1, of + 1)], **changes)
    path = folder / "results/predictions_metrics.json"
    figures = json.loads(path.read_text())
    figures["adapter"]["accuracy"] = {"value": right / of, "low": right / of - 0.05, "high": right / of + 0.05}
    path.write_text(json.dumps(figures))
    return folder


def compared(folder: Path) -> Comparison:
    return compare(find_runs([folder]))


def test_runs_are_ordered_and_only_decided_differences_are_told(tmp_path: Path) -> None:
    for name, right in (("a", 40), ("b", 90), ("c", 89), ("d", 60)):
        run(tmp_path / name, right, inference={"batch_size": right})
    run(tmp_path / "e", 70, task="other")
    found = compared(tmp_path)
    assert [row.name for row in found.rows] == ["b", "c", "e", "d", "a"]
    assert list(found.verdicts) == ["best", "undecided", "", "worse by 30.0%", "worse by 50.0%"]
    page = Page(comparison_page(found, tmp_path))
    assert [row[0] for row in page.tables["Runs"]] == ["b", "c", "e", "d", "a"]
    assert "inference.batch_size" in found.varied
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links[0] == "b/results/report.html"


def test_an_evaluation_and_its_training_are_one_run_and_seeds_have_a_spread(tmp_path: Path) -> None:
    for seed, right in ((1, 50), (2, 60), (3, 70)):
        folder = tmp_path / f"training{seed}"
        (folder / "results").mkdir(parents=True)
        (folder / "results/training_summary.json").write_text('{"best_val_loss": 1.5, "trainable_parameters": 7}')
        section = {
            "run": {"name": folder.name, "results_dir": str(folder)},
            "exp_manager": {"explicit_log_dir": str(folder / "results")},
            "model": {"seed": seed, "nemo_path": f"/adapter{seed}.nemo", "adapter_tuning": {"type": "lora"}},
        }
        (folder / "job_hydra.yaml").write_text(dump_yaml(section))
        run(tmp_path / f"eval{seed}", right, adapter_model_file=f"/adapter{seed}.nemo")
    found = compared(tmp_path)
    assert [row.name for row in found.rows] == ["training3", "training2", "training1"]
    assert found.varied == ["model.seed"]
    ((name, spread),) = found.seeds
    assert (name, round(spread.mean, 6), round(spread.deviation, 6), spread.best) == ("all runs", 0.6, 0.1, 0.7)
    assert "Seeds" in Page(comparison_page(found, tmp_path)).headings


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    run(tmp_path / ("long_name_" * 12), 90)
    run(tmp_path / "short", 20)
    text = text_table(compared(tmp_path))
    assert max(map(len, text.splitlines())) <= 80
    assert "85.0% to 95.0%" in text
    assert text.splitlines()[2].split()[-3:] == ["worse", "by", "70.0%"]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = run(tmp_path / "a", 40), run(tmp_path / "b", 90)
    assert main(["report", str(first)]) == 0
    assert (first / "results/report.html").is_file()
    assert not (first / "comparison.html").exists()
    assert main(["report", str(first), str(second)]) == 0
    assert "Runs" in Page.read(tmp_path / "comparison.html").headings
    assert "worse by 50.0%" in capsys.readouterr().out
    (second / "results/report.html").unlink()
    (second / "results/report.html").mkdir()
    assert main(["report", str(tmp_path)]) == 1
    assert "the report was not written" in capsys.readouterr().err
    assert main(["report", str(first), "--output", "table.csv"]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "has no results" in capsys.readouterr().err


def test_what_is_left_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "a", 40)
    (tmp_path / "x_hydra.yaml").symlink_to(tmp_path / "x_hydra.yaml")
    (tmp_path / "y_hydra.yaml").write_text("a: [")
    (tmp_path / "z_hydra.yaml").write_text("run: {}\nexp_manager: {}\nmodel: 3\n")
    for number, name in enumerate(("/", ".", "/" + "n" * 300 + "/x")):
        evaluation(tmp_path / f"b{number}", [], pred_file_path=name)
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out == f"report: {tmp_path}/a/results/report.html\n"
    first, second = said.err.splitlines()
    assert first == f"{closed} is left out: permission denied"
    assert second.startswith(f"{tmp_path}/y_hydra.yaml is left out: ")


def test_the_table_is_printed_also_if_nothing_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, right in (("a", 40), ("b", 90)):
        (run(tmp_path / name, right) / "results/report.html").mkdir()
    (tmp_path / "comparison.html").write_text("somebody's table")
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "worse by 50.0%" in said.out
    assert f"the comparison was not written: {tmp_path}/comparison.html: is not a report" in said.err


def test_a_name_that_is_not_utf_8_is_linked(tmp_path: Path) -> None:
    run(tmp_path / "first", 40).rename(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    page = Page(comparison_page(compared(tmp_path), tmp_path))
    assert [attributes["href"] for tag, attributes in page.elements if tag == "a"] == ["run%FF/results/report.html"]


def test_equal_answers_to_other_questions_are_not_compared(tmp_path: Path) -> None:
    for name, right, sums in (("a", 90, "12"), ("b", 60, "12"), ("c", 30, "34")):
        folder = run(tmp_path / name, right)
        files = [{"path": "/test.jsonl", "sha256": each} for each in sums]
        (folder / "results/provenance.json").write_text(json.dumps({"data": {"data_paths": files}}))
    run(tmp_path / "d", 20)  # of which nothing is known
    assert list(compared(tmp_path).verdicts) == ["best", "worse by 30.0%", "", "worse by 70.0%"]


def test_no_run_is_the_best_of_runs_on_other_tasks(tmp_path: Path) -> None:
    run(tmp_path / "a", 90)
    run(tmp_path / "b", 60, task="other")
    assert list(compared(tmp_path).verdicts) == ["", ""]


def test_trainings_without_a_path_of_their_adapter_are_all_shown(tmp_path: Path) -> None:
    for number, path in enumerate((None, None, "/adapter.nemo", "/adapter.nemo")):
        folder = tmp_path / f"run{number}"
        (folder / "results").mkdir(parents=True)
        (folder / "results/training_summary.json").write_text(json.dumps({"best_val_loss": number}))
        section = {
            "run": {"name": folder.name, "results_dir": str(folder)},
            "exp_manager": {"explicit_log_dir": str(folder / "results")},
            "model": {"nemo_path": path},
        }
        (folder / "job_hydra.yaml").write_text(dump_yaml(section))
    assert [row.name for row in compared(tmp_path).rows] == ["run0", "run1", "run2", "run3"]
