# SPDX-License-Identifier: Apache-2.0
"""`auto` in a job's file: its numbers are used, stored everywhere, and kept when a longer training resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.testing import assert_close

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.registry import methods
from nemo_launcher.config.automatic import warmup_steps
from nemo_launcher.config.resume_rules import value_of
from tests.training.runs import adapter_of, last_checkpoint_of, moved, summary_of, train

pytestmark = pytest.mark.integration

AUTO = {"model.optim.lr": "auto", "model.optim.sched.warmup_steps": "auto"}
RATE = methods()["parallel_adapter"].settings.LEARNING_RATES.few


@pytest.fixture(scope="module")
def automatic(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two epochs of four steps whose file says `auto`."""
    folder = tmp_path_factory.mktemp("automatic")
    job = train(tiny_base, data, folder, AUTO)
    assert job.status == 0, job.output
    assert f"auto: model.optim.lr={RATE}, model.optim.sched.warmup_steps=1" in job.output
    return folder


def test_it_is_the_training_with_these_numbers(automatic: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    given = {"model.optim.lr": RATE, "model.optim.sched.warmup_steps": warmup_steps(8)}
    assert train(tiny_base, data, tmp_path, given).status == 0
    assert_close(adapter_of(automatic), adapter_of(tmp_path), rtol=0, atol=0)


def test_the_numbers_are_in_the_summary_the_archive_and_the_checkpoint(automatic: Path) -> None:
    summary = summary_of(automatic)
    assert (summary["learning_rate"], summary["warmup_steps"]) == (RATE, 1)
    optim = read_adapter(automatic / "results/adapter.nemo")[0]["optim"]
    assert (optim["lr"], optim["sched"]["warmup_steps"]) == (RATE, 1)
    config = last_checkpoint_of(automatic)["record"]["config"]
    assert [value_of(config, key) for key in AUTO] == [RATE, 1]


def test_a_longer_training_keeps_them(automatic: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Twenty-four steps alone would have a warm-up of two."""
    folder = moved(automatic, tmp_path)
    job = train(tiny_base, data, folder, AUTO | {"trainer.max_epochs": 6})
    assert job.status == 0, job.output
    assert "resuming at step 8" in job.output
    summary = summary_of(folder)
    assert (summary["steps"], summary["warmup_steps"]) == (24, 1)
    changed = train(tiny_base, data, folder, {"trainer.max_epochs": 6, "model.optim.lr": 0.5})
    assert f"model.optim.lr: {RATE} -> 0.5" in changed.output


def test_a_number_from_the_launcher_gives_way_as_well(
    automatic: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """The launcher that starts from a checkpoint of another folder does not know its numbers."""
    said = {"run.automatic": list(AUTO), "model.optim.lr": RATE, "model.optim.sched.warmup_steps": 2}
    (last,) = automatic.glob("results/checkpoints/*-last.ckpt")
    job = train(
        tiny_base, data, tmp_path, said | {"trainer.max_epochs": 6, "trainer.resume_from_checkpoint": str(last)}
    )
    assert job.status == 0, job.output
    assert summary_of(tmp_path)["warmup_steps"] == 1
