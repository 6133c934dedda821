# SPDX-License-Identifier: Apache-2.0
"""Trainings shared by several test files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import write_squad
from tests.training.runs import train, wrong_answers


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy SQuAD. Treat as read-only, like the other fixtures here."""
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed job: two epochs of four steps, validated every two steps."""
    folder = tmp_path_factory.mktemp("finished")
    job = train(tiny_base, data, folder)
    assert job.status == 0, job.output
    return folder


@pytest.fixture(scope="session")
def one_epoch(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of one epoch."""
    folder = tmp_path_factory.mktemp("one_epoch") / "job"
    assert train(tiny_base, data, folder, {"trainer.max_epochs": 1}).status == 0
    return folder


@pytest.fixture(scope="session")
def misled(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job trained on wrong answers, whose validation loss first falls and then rises."""
    folder = tmp_path_factory.mktemp("misled")
    job = train(tiny_base, data, folder, wrong_answers(folder, 0.3))
    assert job.status == 0, job.output
    return folder
