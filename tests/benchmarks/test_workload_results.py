# SPDX-License-Identifier: Apache-2.0
"""A run of the workloads measures what its results lack, and keeps each row as soon as it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workload_rows, workloads
from benchmarks.workload_results import Results, table
from benchmarks.workload_rows import measure_all
from nemo_launcher.errors import UserError
from tests.benchmarks.bases import run_options, write_squad

pytestmark = pytest.mark.unit


class Measured:
    """Stands for the measurement of rows."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failing: set[str] = set()

    def row(self, cell: workloads.Cell, options: Any, given: dict[str, Any]) -> dict[str, Any]:
        self.names.append(cell.name)
        if cell.name == "crash":
            raise KeyboardInterrupt
        failed = {"failed": "no memory"} if cell.name in self.failing else {}
        return {"name": cell.name, "date": "2026-01-01", "options": given, "ratio": 2.0} | failed


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured()
    monkeypatch.setattr(workload_rows, "_row", found.row)
    monkeypatch.setattr(workload_rows, "product_rates", lambda options: [])
    monkeypatch.setattr(workload_rows, "make_bases", lambda options, names: None)
    monkeypatch.setattr(workload_rows, "version_of", lambda python, package: None)
    return found


def run(tmp_path: Path, *arguments: str) -> Results:
    squad = tmp_path / "squad.json"
    if not squad.exists():
        write_squad(squad)
    return measure_all(run_options(squad, tmp_path, "--json", str(tmp_path / "out.json"), *arguments))


def test_finished_rows_are_not_measured_again(measured, tmp_path):
    run(tmp_path, "--only", "classification,chat")
    results = run(tmp_path, "--only", "classification,chat,sixteen")

    names = ["classification-gpt-fp32-ia3", "chat-gpt-fp32-ia3", "sixteen-gpt-fp32-ia3"]
    assert measured.names == names
    assert [row["name"] for row in results.rows] == names
    assert Results.read(tmp_path / "out.json") == results


@pytest.mark.parametrize("change", ["--pairs=9", "--rounds=2"])
def test_other_options_measure_a_row_again(change, measured, tmp_path):
    run(tmp_path, "--only", "chat")
    results = run(tmp_path, "--only", "chat", change)

    assert measured.names == ["chat-gpt-fp32-ia3"] * 2
    assert len(results.rows) == 1


def test_other_data_measure_a_row_again(measured, tmp_path):
    run(tmp_path, "--only", "chat")
    write_squad(tmp_path / "squad.json", questions=2)
    run(tmp_path, "--only", "chat")

    assert len(measured.names) == 2


def test_a_failed_row_is_measured_again(measured, tmp_path):
    measured.failing = {"chat-gpt-fp32-ia3"}
    run(tmp_path, "--only", "chat")
    measured.failing = set()
    results = run(tmp_path, "--only", "chat")

    assert [("failed" in row) for row in results.rows] == [False]


def test_an_interrupted_run_keeps_its_rows(measured, tmp_path, monkeypatch):
    def interrupted(cell, options, given):
        if measured.names:
            raise KeyboardInterrupt
        return measured.row(cell, options, given)

    monkeypatch.setattr(workload_rows, "_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--only", "classification,chat")

    assert [row["name"] for row in Results.read(tmp_path / "out.json").rows] == ["classification-gpt-fp32-ia3"]


def test_unreadable_own_records_are_refused_before_anything_is_measured(measured, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text("{}\n", encoding="utf-8")

    with pytest.raises(UserError, match="no field 'text'"):
        run(tmp_path, "--only", "chat,classification", "--classification-file", str(own))
    assert measured.names == []


def test_a_default_run_covers_each_workload_and_some_cells():
    names = [cell.name for cell in workloads.default_cells()]
    every = [cell.name for cell in workloads.all_cells()]

    assert {cell.workload.name for cell in workloads.default_cells()} == {one.name for one in workloads.WORKLOADS}
    assert {"squad-gpt-bf16-ia3", "squad-t5-fp32-ia3", "squad-gpt-fp32-adapter"} <= {*names}
    assert every[: len(names)] == names
    assert len({*every}) == len(every) == 9 * 2 * 2 * 4 + 2 * 2


def test_an_unknown_row_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_options(tmp_path / "squad.json", tmp_path, "--only", "chats")

    assert "chats: no such row; workloads are squad, classification" in capsys.readouterr().err


def test_the_table_is_printed_from_a_file(tmp_path, capsys):
    rows = [{"name": "chat", "workload": "chat", "date": "2026-01-01", "ratio": 2.04, "lost_to_best_fixed": -0.031}]
    rows.append({"name": "long", "workload": "long", "date": "2026-01-02", "failed": "the worker died at train"})
    products = [{"dtype": "fp32", "product": "linear_qkv", "direction": "forward", "rows": 64, "gflops": 99.6}]
    (tmp_path / "out.json").write_text(json.dumps({"rows": rows, "products": products}), encoding="utf-8")

    with pytest.raises(SystemExit, match="1"):
        workloads.main(["--table", str(tmp_path / "out.json")])

    printed = capsys.readouterr().out
    assert printed.startswith("2026-01-01 to 2026-01-02")
    assert "| chat |" in printed
    assert "| 2.0 |" in printed
    assert "| -3.1% |" in printed
    assert "| fp32 | linear_qkv | forward | 100 |" in printed
    assert "long failed: the worker died at train" in printed


def test_a_file_without_results_is_refused(tmp_path):
    (tmp_path / "out.json").write_text("[]", encoding="utf-8")

    with pytest.raises(UserError, match="holds no results"):
        Results.read(tmp_path / "out.json")
    with pytest.raises(UserError, match="no such file"):
        Results.read(tmp_path / "other.json")


def test_the_table_has_a_row_for_each_field():
    titles, values = table(Results(rows=[{"name": "a", "date": "2026-01-01"}])).splitlines()[2:5:2]

    assert titles.count("|") == values.count("|")
