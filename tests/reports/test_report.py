# SPDX-License-Identifier: Apache-2.0
"""The page of a report: structure, examples, size, permissions, and data that tries to be markup."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.reports import charts
from nemo_launcher.reports.examples import chosen
from nemo_launcher.reports.html import element, escaped
from nemo_launcher.reports.page import MAX_BYTES
from nemo_launcher.reports.report import report_text, write_job_report, write_report
from nemo_launcher.reports.runs import Run, find_runs
from tests.reports.folders import FIGURE, evaluation, line, with_records
from tests.reports.pages import Page

pytestmark = pytest.mark.unit

QUESTIONS = "Questions, right answers and predictions"
SECRET = "hf_" + "a1B2" * 8
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "a\0b\x1b[31m",
    "\u202egnp.exe\u2066 \u200f",
    "</td></tr></table><h1>done</h1>",
    "&lt;b&gt; &amp;",
    "x" * 1_000_000,
]


def run_of(folder: Path) -> Run:
    (run,) = find_runs([folder])
    return run


def page_of(folder: Path) -> Page:
    return Page(report_text(run_of(folder)))


def test_wins_losses_and_figures(tmp_path: Path) -> None:
    lines = [line(1, 0, 1), line(2, 1, 0), line(3, 1, 1), line(4, 0, 1)]
    page = page_of(evaluation(tmp_path / "run", lines))
    assert [row[-1] for row in page.tables[QUESTIONS]] == ["better", "worse", "equal", "better"]
    assert "2 better, 1 worse, 1 equal; all are shown." in page.visible
    assert page.tables["Figures with 95% intervals"][1] == ["accuracy", "base + adapter", "50.0%", "40.0% to 60.0%"]
    (difference,) = (rows for caption, rows in page.tables.items() if caption.startswith("Adapter minus base"))
    assert difference == [["accuracy", "+25.0%", "-10.0% to 40.0%", "undecided"]]


def test_a_page_loads_nothing_and_is_accessible(tmp_path: Path) -> None:
    page = page_of(evaluation(tmp_path / "run", [line(1, 0, 1), line(2, 1, 0)]))
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "form", "base"), tag
        assert not {"src", "href", "style", "onclick"} & attributes.keys()
        if tag == "svg":
            assert attributes["role"] == "img"
            assert {*(attributes["aria-labelledby"] or "").split()} <= {*ids}
        if tag == "input":
            assert ("label", attributes["id"]) in [(name, found.get("for")) for name, found in page.elements]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    policies = [attributes["content"] or "" for _, attributes in page.elements if "http-equiv" in attributes]
    assert [policy.partition(";")[0] for policy in policies] == ["default-src 'none'"]
    assert "unsafe" not in policies[0]
    assert not re.search(r"https?://", page.text)


@pytest.mark.parametrize("place", ["prediction", "question", "task", "answer", "name", "metric"])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_data_stays_text(tmp_path: Path, place: str, text: str) -> None:
    calm, wild = (tmp_path / name for name in ("calm", "wild"))
    counts = []
    for folder, content in ((calm, "plain"), (wild, text)):
        of_line = line(1, 0, 1, content if place == "prediction" else "yes", content if place == "task" else "squad")
        if place == "answer":
            of_line["answers"] = [content]
        changes = {"adapter_model_file": content} if place == "name" and "\0" not in content else {}
        evaluation(folder, [of_line], **changes)
        with_records(folder, [{"question": content} if place == "question" else {}])
        if place == "metric":
            figures = folder / "results/predictions_metrics.json"
            figures.write_text(figures.read_text().replace('"title": "accuracy"', f'"title": {json.dumps(content)}'))
        page = page_of(folder)
        assert len(page.text.encode()) < MAX_BYTES
        assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069\u200f]", page.text)
        counts.append([tag for tag, _ in page.elements if tag not in ("span", "bdi")])
    assert counts[0] == counts[1]
    if place != "metric" and len(text) < 1000 and "\0" not in text and text.isprintable():
        assert text in page.visible


def test_what_cannot_be_encoded_becomes_text() -> None:
    assert escaped("\ud800\u202e\0") == "\\ud800\\u202e\\x00"
    assert element("td", "<b>", title='"') == '<td title="&quot;">&lt;b&gt;</td>'


def test_examples_can_be_left_out(tmp_path: Path) -> None:
    lines = [line(number, 0, 1, f"answer{number}") for number in range(1, 301)]
    page = page_of(evaluation(tmp_path / "few", lines, report_examples=5))
    assert len(page.tables[QUESTIONS]) == 5
    page = page_of(evaluation(tmp_path / "none", lines, report_examples=0))
    assert QUESTIONS not in page.tables
    assert "answer1" not in page.text


def test_rare_outcomes_are_shown_first() -> None:
    outcomes = ["tie"] * 50 + ["win"] * 30 + ["loss"] * 2
    found = [outcomes[place] for place in chosen(outcomes, 20)]
    assert (found.count("loss"), found.count("win"), found.count("tie")) == (2, 9, 9)
    assert chosen(["win"] * 3, 20) == [0, 1, 2]


def test_a_report_is_never_too_large(tmp_path: Path) -> None:
    lines = [line(number, 0, 1, "\x01<" * 2000) for number in range(1, 1001)]
    folder = evaluation(tmp_path / "run", lines, report_examples=1000)
    assert 500_000 < len(report_text(run_of(folder)).encode()) < MAX_BYTES


def test_a_report_is_no_more_open_than_its_data(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)])
    os.chmod(folder / "test.jsonl", 0o600)
    path = write_report(run_of(folder))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_in_the_configuration_are_masked(tmp_path: Path) -> None:
    env = {"name": "x", "results_dir": str(tmp_path / "run"), "env_vars": {"TOKEN": "hunter2"}}
    folder = evaluation(tmp_path / "run", [], run=env, split_string=SECRET, unknown="hunter3")
    (folder / "launcher_cmd.log").write_text(f"python3 main.py first\npython3 main.py a.b={SECRET}\n")
    page = page_of(folder)
    assert "hunter" not in page.text
    assert SECRET not in page.text
    assert "python3 main.py a.b=***" in page.visible


def test_the_metrics_of_validations_are_shown(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)], training_summary_path=str(tmp_path / "t/x.json"))
    (tmp_path / "t").mkdir()
    figures = [{"val_accuracy": 0.25, "val_<b>": 1.5, "val_" + "x" * 200: 1.0}, {"val_accuracy": 0.75, "val_<b>": None}]
    rows = [{"step": 4 * n, "val_loss": 2.0 / n, "seconds": n} | each for n, each in enumerate(figures, start=1)]
    steps = [{"step": 8, "steps": 8, "loss": 2.0, "lr": 0.1, "seconds": 2}]
    (tmp_path / "t/training_curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps + rows))
    page = page_of(folder)
    assert page.tables["Validation"] == [["4", "2", "0.25", "1.5"], ["8", "1", "0.75", ""]]
    assert "val_accuracy by step" in page.visible
    assert "x" * 200 not in page.text


def test_a_range_test_is_shown_with_the_training_that_used_its_rate(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)], training_summary_path=str(tmp_path / "t/x.json"))
    (tmp_path / "t").mkdir()
    test = {"learning_rate": 0.01, "is_suggestion": True, "rates": [1e-8, 0.1, 1.0], "losses": [3.0, 2.0, None]}
    files = {name: tmp_path / f"t/{name}.json" for name in ("learning_rate_test", "training_summary")}
    for rate, content, shown in ((0.01, test, True), (0.02, test, False), (0.01, test | {"rates": "x"}, False)):
        files["learning_rate_test"].write_text(json.dumps(content))
        files["training_summary"].write_text(json.dumps({"learning_rate": rate}))
        page = page_of(folder)
        assert ("The training's learning rate is 0.01, suggested by the test." in page.visible) == shown
        assert ("Loss by learning rate" in page.text) == shown


def test_broken_files_leave_parts_out(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)], training_summary_path=str(tmp_path / "t/x.json"))
    (tmp_path / "t").mkdir()
    (tmp_path / "t/training_curve.jsonl").write_text('{"step": 1}\nnonsense\n[]\n{"step": "x", "seconds": 1}\n')
    (tmp_path / "t/provenance.json").write_text(
        '{"lengths": {"counts": [1, "x"], "edges": 3}, "base": [], "data": {"a": 1}}'
    )
    (tmp_path / "t/training_summary.json").write_text('{"steps": "many", "peak_memory_gib": 1e308}')
    for content in (
        '{"metrics": 3, "adapter": []}',
        '{"metrics": {"a": 1}, "adapter": {"a": {"value": "x"}}}',
        '{"metrics": {"a": {}}, "adapter": {"a": {}}, "difference": {"a": {"better": ["adapter"]}}}',
        "[",
        "null",
    ):
        (folder / "results/predictions_metrics.json").write_text(content)
        assert page_of(folder).headings[0] == "Evaluation: run"


def test_a_page_without_examples_is_never_too_large_either(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)])
    path = folder / "results/predictions_metrics.json"
    figures = json.loads(path.read_text())
    names = [f"{number:03}{'<' * 37}" for number in range(200)]
    figures["metrics"] = {name: {"title": name, "is_share": True} for name in names}
    of_task = {"adapter": dict.fromkeys(names, FIGURE)}
    path.write_text(json.dumps(figures | {"tasks": {"<" * 100 + str(number): of_task for number in range(20)}}))
    page = page_of(folder)
    assert 5_000 < len(page.text.encode()) < MAX_BYTES
    assert "A section is left out: the page would exceed 2 MB." in page.visible
    assert QUESTIONS in page.tables


def test_a_file_that_is_not_a_report_is_not_replaced(tmp_path: Path) -> None:
    site = tmp_path / "index.html"
    run = replace(run_of(evaluation(tmp_path / "run", [line(1, 0, 1)], report_path=str(site))), within=())
    site.write_text("<!DOCTYPE html>\n<html lang='en'>a page about birds")
    with pytest.raises(UserError, match="is not a report"):
        write_report(run)
    assert "birds" in site.read_text()
    site.write_text("")
    for _ in range(2):  # an empty file, then a report
        assert write_report(run) == site
        assert Page.read(site).headings[0] == "Evaluation: run"


HUGE = [(1, 1e308), (2, -1e308)], [(1, 5e-324), (2, 0)], [(1, 1e-310), (2, 3e-310)], [(1, 1e300), (2, 1e300 + 1e285)]


@pytest.mark.parametrize("points", [*HUGE, [(2**53, 1e16), (2**53 - 1, 1e16 + 2)], [(1, -0.0)]])
def test_any_numbers_have_a_chart(points: list[tuple[float, float]]) -> None:
    values = [value for _, value in points]
    found = charts.lines("loss", [charts.Series("loss", [(0, 1.0), *points])], x_label="x", y_label="y")
    also = charts.lines("loss", [charts.Series("loss", points)], x_label="x", y_label="y")
    bars = charts.histogram("lengths", [*sorted(values), 2.0], [1.0] * len(values), x_label="x", y_label="y")
    for chart in (found, also, bars):
        assert not re.search(r"\b(nan|inf)\b", chart or "")


def test_a_report_never_fails_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "run", [line(1, 0, 1)])
    run = run_of(folder)
    (folder / "results/report.html").mkdir()
    write_job_report(run.config_file, run.values)
    said = capsys.readouterr().out
    assert said.startswith("the report was not written: ")
    assert said.count("\n") == 1
