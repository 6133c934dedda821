# SPDX-License-Identifier: Apache-2.0
"""Where `nemo-launcher report` writes: never outside of the folders that it is given, whatever they contain."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.cli import main
from nemo_launcher.reports.runs import Run
from tests.reports.folders import evaluation, line

pytestmark = pytest.mark.unit


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's, in which nothing may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    yield folder
    assert {path.name for path in folder.iterdir()} <= {"mine.txt", "results"}
    assert not list(folder.rglob("*.html"))


def job(tmp_path: Path, **changes: Any) -> Path:
    return evaluation(tmp_path / "jobs/run", [line(1, 0, 1)], **changes)


def test_a_configured_report_outside_is_written_beside_the_results(
    tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = job(tmp_path, report_path=str(outside / "report.html"))
    assert main(["report", str(folder)]) == 0
    told = f"its configuration names {outside}/report.html, which is not in the folders named here"
    assert capsys.readouterr().out == f"report: {folder}/results/report.html ({told})\n"
    assert (folder / "results/report.html").is_file()


def test_a_folder_that_the_user_names_too_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    site.mkdir()
    folder = job(tmp_path, report_path=str(site / "report.html"))
    assert main(["report", str(folder), str(site)]) == 0
    assert capsys.readouterr().out == f"report: {site}/report.html\n"
    assert not (folder / "results/report.html").exists()


def test_results_outside_leave_the_report_in_the_job_folder(
    tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = job(tmp_path)
    shutil.move(folder / "results", outside / "results")
    config = folder / "run_hydra.yaml"
    config.write_text(config.read_text().replace(str(folder / "results"), str(outside / "results")))
    assert main(["report", str(folder)]) == 0
    assert (folder / "run_report.html").is_file()
    assert f"its configuration names {outside}/results/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("link", ["results", "results/report.html"])
def test_links_do_not_lead_outside(link: str, tmp_path: Path, outside: Path) -> None:
    folder = job(tmp_path)
    if link == "results":
        shutil.move(folder / "results", outside / "results")
        (folder / "results").symlink_to(outside / "results")
    else:
        (folder / link).symlink_to(outside / "new.html")
    assert main(["report", str(folder)]) == 0
    assert (folder / "run_report.html").is_file()


def test_a_path_with_dots_does_not_lead_outside(tmp_path: Path, outside: Path) -> None:
    folder = job(tmp_path, report_path=f"{tmp_path}/jobs/run/../../outside/report.html")
    assert main(["report", str(folder)]) == 0
    assert (folder / "results/report.html").is_file()


def test_a_link_to_another_jobs_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, linked = job(tmp_path), tmp_path / "linked"
    linked.mkdir()
    (linked / "x_hydra.yaml").symlink_to(folder / "run_hydra.yaml")
    assert main(["report", str(linked)]) == 1
    assert "is behind a link to another folder" in capsys.readouterr().err
    assert not list(folder.rglob("*.html"))


def test_a_comparison_is_not_written_through_a_link(
    tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path)
    evaluation(tmp_path / "jobs/other", [line(1, 0, 1)])
    (tmp_path / "jobs/comparison.html").symlink_to(outside / "new.html")
    assert main(["report", str(tmp_path / "jobs")]) == 1
    assert "leads out of the folder" in capsys.readouterr().err


def test_a_job_writes_where_its_configuration_says(tmp_path: Path) -> None:
    run = Run(tmp_path / "run_hydra.yaml", {"pred_file_path": "/x/p.txt", "report_path": "/site/report.html"})
    assert run.report_file == Path("/site/report.html")
