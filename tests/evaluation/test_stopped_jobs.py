"""Evaluation jobs that are killed or stopped: the next start goes on from the answers that they have kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.evaluation.test_jobs import lines_of
from tests.jobs import Job, evaluation_config, run_script

pytestmark = pytest.mark.integration
COMPARED = {"compare_with_base": True}


def signal_at(number: int, answers: int) -> None:
    """Send this process a signal when so many answers are kept, counted from its start; -1: when all are."""
    from nemo_launcher.evaluation import predictions, run
    from nemo_launcher.kept_answers import KeptAnswers

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
        line = f"going on from {count} answers in {tmp_path / 'cut/results' / name}.partial"
        assert (line in second.output) == (count > 0), second.output
    for path in (tmp_path / "whole/results").iterdir():
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
    """Something else decides the answers: the job begins anew. A file that is no such one is left alone."""
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
