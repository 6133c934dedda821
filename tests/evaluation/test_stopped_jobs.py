# SPDX-License-Identifier: Apache-2.0
"""Killed or stopped evaluation jobs: the next start continues from the saved answers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from nemo_launcher.adapters.archive import read_adapter, save_adapter
from tests.evaluation.test_jobs import lines_of
from tests.jobs import Job, evaluation_config, run_script
from tests.world import run_job

pytestmark = pytest.mark.integration
COMPARED = {"compare_with_base": True}
OF_THE_RUN = ("report.html", "provenance.json")
"""Results that name the folder and the time of the run."""


def signal_at(number: int, answers: int) -> None:
    """Send this process a signal after this many answers since its start; -1: after all."""
    from nemo_launcher.evaluation import predictions, run
    from nemo_launcher.evaluation.kept_answers import KeptAnswers

    take, count = KeptAnswers.take, 0

    def counted(self: KeptAnswers, *args: object, **more: str) -> None:
        nonlocal count
        take(self, *args, **more)  # type: ignore[arg-type]
        count += 1
        if count == answers:
            os.kill(os.getpid(), number)

    KeptAnswers.take = counted  # type: ignore[method-assign]
    if answers < 0:
        assert run.write_predictions is predictions.write_predictions
        run.write_predictions = lambda *args, **options: os.kill(os.getpid(), number)


def evaluated(base: Path, adapter: Path, data: Path, folder: Path, kill: tuple | None = None) -> Job:
    config = evaluation_config(base, adapter, data, folder, **COMPARED)
    config["inference"]["batch_size"] = 2
    return run_script("evaluate", config, folder, before=signal_at if kill else None, args=kill or ())


@pytest.mark.parametrize(
    ("kill", "status", "known", "of_base"),
    [
        pytest.param((signal.SIGKILL, 3), -signal.SIGKILL, 0, 3, id="killed_in_the_base"),
        pytest.param((signal.SIGKILL, 10), -signal.SIGKILL, 4, 6, id="killed_in_the_adapter"),
        pytest.param((signal.SIGTERM, 3), 128 + signal.SIGTERM, 0, 3, id="stopped"),
        pytest.param((signal.SIGKILL, -1), -signal.SIGKILL, 0, 6, id="killed_before_the_predictions"),
    ],
)
def test_the_next_start_goes_on_from_the_answers(
    kill: tuple,
    status: int,
    known: int,
    of_base: int,
    tiny_base: Path,
    adapter: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    undisturbed = evaluated(tiny_base, adapter, data, tmp_path / "whole")
    assert undisturbed.status == 0, undisturbed.output
    first = evaluated(tiny_base, adapter, data, tmp_path / "cut", kill)
    assert first.status == status, first.output
    if status > 0:
        assert f"{of_base} answers are kept in {tmp_path / 'cut'}" in first.output
    second = evaluated(tiny_base, adapter, data, tmp_path / "cut")
    assert second.status == 0, second.output
    for name, count in (("base_predictions.txt", of_base), ("predictions.txt", known)):
        line = f"resuming from {count} answers in {tmp_path / 'cut/results' / name}.partial"
        assert (line in second.output) == (count > 0), second.output
    for path in (tmp_path / "whole/results").iterdir():
        if path.name not in OF_THE_RUN:
            assert (tmp_path / "cut/results" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "cut/results").iterdir()} == {
        path.name for path in (tmp_path / "whole/results").iterdir()
    }


def test_answers_to_other_questions_are_not_taken(
    tiny_base: Path,
    adapter: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    """If other inputs determine the answers, the job starts anew; unrelated files are left alone."""
    assert evaluated(tiny_base, adapter, data, tmp_path, (signal.SIGKILL, 3)).status == -signal.SIGKILL
    config = evaluation_config(tiny_base, adapter, data, tmp_path, **COMPARED)
    config["inference"]["tokens_to_generate"] = 3
    again = run_script("evaluate", config, tmp_path)
    assert (again.status, "going on" in again.output) == (0, False), again.output
    assert len(lines_of(tmp_path / "results/predictions.jsonl")) == 6

    foreign = tmp_path / "other/results/predictions.txt.partial"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    refused = evaluated(tiny_base, adapter, data, tmp_path / "other")
    assert refused.status == 2, refused.output
    assert str(foreign) in refused.output
    assert foreign.read_text() == "mine\n"


def stop_each_rank(answers: int) -> None:
    """Send each rank SIGTERM after this many saved answers."""
    signal_at(signal.SIGTERM, answers)


@pytest.mark.parametrize(("first", "second"), [(3, 1), (1, 2)])
def test_another_number_of_replicas_goes_on_from_the_answers(
    first: int, second: int, tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    """Answers of replicas that no longer exist are used too, and their files are deleted."""

    def evaluate(replicas: int, *before: object) -> list[Job]:
        config = evaluation_config(tiny_base, adapter, data, tmp_path / "job")
        config["inference"]["batch_size"] = 1
        config["trainer"]["devices"] = replicas
        return run_job(replicas, "evaluate", config, tmp_path / "job", *before)

    stopped = evaluate(first, stop_each_rank, 1)
    assert {job.status for job in stopped} == {143}, [job.output for job in stopped]
    foreign = tmp_path / "job/results/predictions.txt.partial9"
    foreign.write_text("mine\n")
    jobs = evaluate(second)
    assert {job.status for job in jobs} == {0}, [job.output for job in jobs]
    assert f"resuming from {first} answers" in jobs[0].output
    left = {path.name for path in (tmp_path / "job/results").iterdir()}
    results = {"predictions.txt", "predictions.jsonl", "squad_metric.json"}
    results |= {"predictions_metrics.json", "predictions_scores.jsonl", *OF_THE_RUN}
    assert left == results | {foreign.name}


def test_an_adapter_that_does_not_fit_is_told_before_the_base_answers(
    tiny_base: Path, adapter: Path, data: Path, tmp_path: Path
) -> None:
    config, state = read_adapter(adapter)
    config["adapter_tuning"]["adapter_dim"] *= 2
    save_adapter(tmp_path / "wide.nemo", config, state)
    job = evaluated(tiny_base, tmp_path / "wide.nemo", data, tmp_path / "job")
    assert job.status == 2, job.output
    assert "this model and method need" in job.output
    assert "frozen base:" not in job.output


def test_a_file_in_the_way_costs_no_answers(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    """It is reported before the base answers, and earlier answers are kept."""
    assert evaluated(tiny_base, adapter, data, tmp_path, (signal.SIGTERM, 3)).status == 143
    kept, foreign = (tmp_path / "results" / f"{name}predictions.txt.partial" for name in ("base_", ""))
    before = kept.read_bytes()
    foreign.write_text("mine\n")
    job = evaluated(tiny_base, adapter, data, tmp_path)
    assert (job.status, str(foreign) in job.output, "frozen base:" in job.output) == (2, True, False), job.output
    assert (kept.read_bytes(), foreign.read_text()) == (before, "mine\n")


def other_questions(rank: int, path: str) -> None:
    """Make one rank read other questions."""
    if os.environ["RANK"] == str(rank):
        sys.argv.append(f"data_paths=[{path}]")


def test_a_rank_that_reads_other_questions(tiny_base: Path, adapter: Path, data: Path, tmp_path: Path) -> None:
    config = evaluation_config(tiny_base, adapter, data, tmp_path)
    config["trainer"]["devices"] = 2
    jobs = run_job(2, "evaluate", config, tmp_path, other_questions, 1, str(data / "squad_val.jsonl"))
    assert [job.status for job in jobs] == [2, 2], [job.output for job in jobs]
    assert sum(job.output.count("data_paths[0]: differs between rank 1 (on ") for job in jobs) == 1
