# SPDX-License-Identifier: Apache-2.0
"""A training whose validation loss did not fall says so at its end, with what to try."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.adapters.registry import methods
from nemo_launcher.training.figures import ValidationLoss
from tests.training.runs import train

TOLD = "val_loss did not fall: "


def validations(*losses: list[float], before: list[float] | None = None) -> str | None:
    """Return the text after validations with these losses of batches of 10 tokens."""
    found = ValidationLoss()
    for number, batches in enumerate([before or [], *losses]):
        for loss in batches:
            found.add(torch.tensor(loss), 10)
        found.take(nemo_compat=False, before_training=number == 0)
    return found.not_fallen()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("losses", "before", "told"),
    [
        ([[3.0, 3.0]], [3.0, 3.0], f"{TOLD}3.0000 before training, 3.0000 at best on the same records"),
        ([[3.5, 3.5], [4.0, 4.0]], [3.0, 3.0], f"{TOLD}3.0000 before training, 3.5000 at best on the same records"),
        ([[2.99, 2.99]], [3.0, 3.0], f"{TOLD}3.0000 before training, 2.9900 at best on the same records"),
        ([[2.0, 2.0], [4.0, 4.0]], [3.0, 3.0], None),
        ([[2.0, 2.0, 9.0]], [3.0, 3.0], None),  # later batches were not seen before training
        ([[3.0]], None, None),  # a resumed training
        ([], [3.0], None),
    ],
)
def test_the_same_records_are_compared(losses: list[list[float]], before: list[float] | None, told: str | None) -> None:
    assert validations(*losses, before=before) == told


@pytest.mark.integration
def test_a_training_without_effect(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.optim.lr": 1e-30, "trainer.max_epochs": 1})
    assert job.status == 0, job.output
    (line,) = [line for line in job.output.splitlines() if TOLD in line]
    usual = methods()["parallel_adapter"].settings.LEARNING_RATES.few
    assert f"; try model.optim.lr={usual:g}, a higher trainer.max_epochs, and check" in line


@pytest.mark.integration
def test_a_training_with_an_effect(finished: Path) -> None:
    assert TOLD not in (finished / "train.log").read_text(encoding="utf-8")
