# SPDX-License-Identifier: Apache-2.0
"""Training jobs with stored hidden states: killed, resumed, and on two ranks, with the adapters of jobs without."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.cache import FOLDER_NAME
from nemo_launcher.files.atomic import MARK
from nemo_launcher.training.hidden_cache import SUFFIX
from tests.engine import tiny_gpt_nemo, write_squad
from tests.jobs import Job, job_config, run_script
from tests.training.runs import adapter_of, kill_at_step, summary_of
from tests.world import run_job

pytestmark = pytest.mark.integration
STORED = {"model.data.cache_hidden": True}
EPOCHS = {"trainer.max_epochs": 3, "trainer.val_check_interval": 1.0, "model.adapter_tuning.layers": "2-3"}


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_nemo(tmp_path_factory.mktemp("four") / "base.nemo", num_hidden_layers=4)


@pytest.fixture(scope="module")
def plain(four_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of three epochs without stored hidden states."""
    folder = tmp_path_factory.mktemp("plain")
    job = train(four_layers, write_squad(folder / "data"), folder, {})
    assert job.status == 0, job.output
    return folder


def train(base: Path, data: Path, folder: Path, changes: Mapping[str, Any], *then: Any) -> Job:
    config = job_config(base, data, folder, EPOCHS | dict(changes))
    before, args = (then[0], then[1:]) if then else (None, ())
    return run_script("train", config, folder, before=before, args=args)


def hidden_files(data: Path) -> list[Path]:
    return sorted((data / FOLDER_NAME).glob(f"*{SUFFIX}"))


def assert_same_adapter(folder: Path, wanted: Path) -> None:
    torch.testing.assert_close(adapter_of(folder), adapter_of(wanted), rtol=0, atol=2e-5)
    mine, theirs = (summary_of(path)["best_val_loss"] for path in (folder, wanted))
    assert mine == pytest.approx(theirs, abs=1e-5)


def kill_while_storing(write: int) -> None:
    """Kill this process with SIGKILL before the write of this number (from 0) of hidden states."""
    from nemo_launcher.data.hidden_file import TableWriter

    original, writes = TableWriter.write, iter(range(1000))

    def killing(self: Any, start: int, rows: Any) -> int:
        if next(writes) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, start, rows)

    TableWriter.write = killing


@pytest.mark.parametrize("write", [5, 17])
def test_a_training_that_is_killed_while_it_stores(write: int, four_layers: Path, plain: Path, tmp_path: Path) -> None:
    """The first 16 writes are of training samples, the next of validation samples."""
    data = write_squad(tmp_path / "data")
    killed = train(four_layers, data, tmp_path, STORED, kill_while_storing, write)
    assert killed.status == -signal.SIGKILL, killed.output
    assert len(hidden_files(data)) == (write > 16)
    assert any(MARK in path.name for path in (data / FOLDER_NAME).iterdir())

    job = train(four_layers, data, tmp_path, STORED)

    assert job.status == 0, job.output
    assert len(hidden_files(data)) == 2
    assert not any(MARK in path.name for path in (data / FOLDER_NAME).iterdir())
    assert_same_adapter(tmp_path, plain)


@pytest.mark.parametrize("stored_again", [True, False], ids=["stored_again", "without_after_the_kill"])
def test_a_training_that_is_killed_while_it_trains(
    stored_again: bool, four_layers: Path, plain: Path, tmp_path: Path
) -> None:
    data = write_squad(tmp_path / "data")
    killed = train(four_layers, data, tmp_path, STORED, kill_at_step, 6)
    assert killed.status == -signal.SIGKILL, killed.output

    job = train(four_layers, data, tmp_path, STORED if stored_again else {"model.data.cache_hidden": False})

    assert job.status == 0, job.output
    assert ("hidden states are read from" in job.output) == stored_again
    assert "are written to" not in job.output
    if not stored_again:
        assert "model.data.cache_hidden True -> False: the last digits may differ" in job.output
    assert_same_adapter(tmp_path, plain)


def test_two_jobs_at_the_same_time(four_layers: Path, plain: Path, tmp_path: Path) -> None:
    data, folders = write_squad(tmp_path / "data"), [tmp_path / "first", tmp_path / "second"]
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda folder: train(four_layers, data, folder, STORED), folders))

    assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
    assert len(hidden_files(data)) == 2
    for folder in folders:
        assert_same_adapter(folder, plain)


def test_no_room_on_the_disk_is_told_in_a_line(four_layers: Path, tmp_path: Path) -> None:
    job = train(four_layers, write_squad(tmp_path / "data"), tmp_path, STORED, fill_the_disk)

    assert job.status == 2
    assert "model.data.cache_hidden: the hidden states need" in job.output
    assert "Traceback" not in job.output


def fill_the_disk() -> None:
    """Let every disk have 1000 free bytes for this process."""
    from types import SimpleNamespace

    from nemo_launcher.training import hidden_cache

    hidden_cache.shutil = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=1000))


@pytest.mark.parametrize("sizes", [{}, {"model.tensor_model_parallel_size": 2}], ids=["replicas", "tensor"])
def test_two_ranks_store_one_file(sizes: dict[str, Any], four_layers: Path, plain: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    config = job_config(four_layers, data, tmp_path, EPOCHS | STORED | {"trainer.devices": 2} | sizes)

    jobs = run_job(2, "train", config, tmp_path)

    assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
    assert len(hidden_files(data)) == 2
    assert_same_adapter(tmp_path, plain)


def test_a_rank_that_does_not_see_the_folder(four_layers: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    config = job_config(four_layers, data, tmp_path, EPOCHS | STORED | {"trainer.devices": 2})

    jobs = run_job(2, "train", config, tmp_path, look_elsewhere)

    assert [job.status for job in jobs] == [2, 2], [job.output for job in jobs]
    told = [job for job in jobs if "does not see" in job.output]
    assert len(told) == 1
    assert "Traceback" not in told[0].output
    assert hidden_files(data) == []


def look_elsewhere() -> None:
    """Let rank 1 find no complete file, as on a node with a folder of its own."""
    from nemo_launcher.training import hidden_cache

    original = hidden_cache._check_shared
    if os.environ["RANK"] == "1":
        hidden_cache._check_shared = lambda path, size: original(path, size + 1)


def test_a_range_test_uses_those_of_the_training(four_layers: Path, tmp_path: Path) -> None:
    data, rate = write_squad(tmp_path / "data"), "find"
    for name in ("found", "given"):
        job = train(four_layers, data, tmp_path / name, STORED | {"model.optim.lr": rate})
        assert job.status == 0, job.output
        assert job.output.count("are written to") == (2 if name == "found" else 0)
        rate = summary_of(tmp_path / name)["learning_rate"]
    torch.testing.assert_close(adapter_of(tmp_path / "found"), adapter_of(tmp_path / "given"), rtol=0, atol=0)
