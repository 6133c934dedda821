# SPDX-License-Identifier: Apache-2.0
"""Trainings with two ranks that differ: one has other files, or ends early."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.samples import Batch
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.training import step
from nemo_launcher.training.base_setup import training_layout
from tests.engine import tiny_gpt_nemo
from tests.jobs import REPOSITORY, SCRIPTS, Job, job_config, loaded, write_config
from tests.training.runs import adapter_of, moved, names_in, wrong_answers
from tests.world import run_job, run_world

pytestmark = pytest.mark.integration
TP2 = {"model.tensor_model_parallel_size": 2}


def override(rank: int, key: str, value: str) -> None:
    """Give one rank another value of a key."""
    if os.environ["RANK"] == str(rank):
        sys.argv.append(f"{key}={value}")


def train(base: Path, data: Path, folder: Path, changes: Mapping[str, Any], *before: Any) -> list[Job]:
    config = job_config(base, data, folder, {"trainer.devices": 2, "trainer.max_epochs": 1} | dict(changes))
    return run_job(2, "train", config, folder, *before)


def assert_told_once(jobs: list[Job], words: str, folder: Path) -> None:
    assert [job.status for job in jobs] == [2, 2], [job.output for job in jobs]
    assert sum(job.output.count(words) for job in jobs) == 1, [job.output for job in jobs]
    assert not any("Traceback" in job.output for job in jobs)
    assert not (folder / "results/adapter.nemo").exists()


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_nemo(tmp_path_factory.mktemp("other") / "base.nemo", seed=7)


@pytest.mark.parametrize("sizes", [{}, TP2], ids=["replicas", "tensor"])
def test_another_base_under_the_path_of_one_rank(
    sizes: dict[str, Any], other_base: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    jobs = train(tiny_base, data, tmp_path, sizes, override, 1, "model.language_model_path", str(other_base))
    assert_told_once(jobs, "language_model_path: differs between rank 1 (on ", tmp_path)


def test_other_records_of_one_rank(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (data / "squad_train.jsonl").read_text().splitlines()]
    other = tmp_path / "stale.jsonl"
    other.write_text("".join(json.dumps(line | {"answer": "qqq"}) + "\n" for line in lines))
    jobs = train(tiny_base, data, tmp_path, {}, override, 1, "model.data.train_ds", f"[{other}]")
    assert_told_once(jobs, "model.data.train_ds[0]: differs between rank 1 (on ", tmp_path)


def test_a_copy_of_the_data_on_each_node_is_taken(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copy(data / "squad_train.jsonl", tmp_path / "copy.jsonl")
    jobs = train(tiny_base, data, tmp_path, {}, override, 1, "model.data.train_ds", f"[{copy}]")
    assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]


def test_other_settings_of_one_rank(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    jobs = train(tiny_base, data, tmp_path, {}, override, 1, "model.optim.lr", "0.9")
    assert_told_once(jobs, "model.optim.lr: differs between rank 1 (on ", tmp_path)


def write_layout(base: Path, folder: Path) -> None:
    """Write how a rank cuts its batches; each rank has another number of threads."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(rank + 1)
    settings = loaded(job_config(base, folder, folder, {"model.micro_batch_size": 8})).section.model
    (folder / f"layout_{rank}").write_text(repr(training_layout(load_base(base), settings, "ia3", 0.0, None)))


def test_replicas_with_other_numbers_of_threads_cut_batches_alike(tiny_base: Path, tmp_path: Path) -> None:
    """Each takes its share of the same micro-batches; otherwise samples would be repeated or lost."""
    jobs = run_world(2, write_layout, (tiny_base, tmp_path), tmp_path)
    assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
    first, second = ((tmp_path / f"layout_{rank}").read_text() for rank in range(2))
    assert first == second == repr(Layout((Concurrency(1, 8, 1),), 512))


def spoil_checkpoints(rank: int) -> None:
    """Make one rank read other content in each checkpoint."""
    if os.environ["RANK"] == str(rank):
        import nemo_launcher.training.resume as resume

        resume.file_checksum = lambda path: "unreadable"


def test_a_checkpoint_that_one_rank_cannot_read(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    names, adapter = names_in(folder), (folder / "results/adapter.nemo").read_bytes()
    jobs = train(tiny_base, data, folder, {"trainer.max_epochs": 2}, spoil_checkpoints, 1)
    assert [job.status for job in jobs] == [2, 2], [job.output for job in jobs]
    assert sum(job.output.count("-last.ckpt: differs between rank 1 (on ") for job in jobs) == 1
    assert (names_in(folder), (folder / "results/adapter.nemo").read_bytes()) == (names, adapter)


def test_a_rank_that_ends_before_the_groups_are_made_is_not_waited_for(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Started without torchrun, which would end the other ranks."""
    jobs = train(tiny_base, data, tmp_path, {}, override, 1, "model.data.train_ds", "[/nowhere.jsonl]")
    assert [job.status for job in jobs] == [1, 2], [job.output for job in jobs]
    assert "another rank has ended" in jobs[0].output
    assert jobs[1].output.count("/nowhere.jsonl: no such file") == 1


def test_a_rank_that_waits_for_the_first_one_ends_on_a_signal(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Its connection is accepted but never answered."""
    config = write_config(tmp_path / "train_hydra.yaml", job_config(tiny_base, data, tmp_path, {"trainer.devices": 2}))
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": str(server.getsockname()[1]), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, str(SCRIPTS / "train.py"), str(config)]
        with subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(60)
            connection, _ = server.accept()
            with connection:
                connection.recv(1)  # torch has sent data
                process.terminate()
                _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "SIGTERM: stopped\n")


def lose_checkpoints(rank: int) -> None:
    """Make one rank find no checkpoint and no adapter, like a node with another folder at that path."""
    import nemo_launcher.training.export as export
    import nemo_launcher.training.nemo.checkpointing as checkpointing

    def absent(path: Any) -> Any:
        raise UserError(Problem(str(path), "no such file"))

    if os.environ["RANK"] == str(rank):
        checkpointing.read_checkpoint = absent
        export.read_adapter = absent


def test_the_best_weights_are_those_that_the_first_rank_reads(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Each rank has a part of the adapter; a rank that kept its last weights would corrupt it."""
    adapters = []
    for name, before in (("whole", ()), ("lost", (lose_checkpoints, 1))):
        changes = TP2 | {"trainer.max_epochs": 2} | wrong_answers(tmp_path, 0.3)
        jobs = train(tiny_base, data, tmp_path / name, changes, *before)
        assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
        adapters.append(adapter_of(tmp_path / name))
    torch.testing.assert_close(adapters[1], adapters[0], rtol=0, atol=0)


def run_out_of_memory(rank: int, tokens: int) -> None:
    """Let one rank have no memory for longer rows."""
    run_model = step.run_model

    def limited(model: Any, row: Batch) -> torch.Tensor:
        if row.num_computed_tokens > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_model(model, row)

    if os.environ["RANK"] == str(rank):
        step.run_model = limited


def test_a_rank_that_cuts_its_rows_alone_changes_no_result(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"model.data.layout": "fixed", "model.micro_batch_size": 4, "model.data.share_prefix": False}
    plain = train(tiny_base, data, tmp_path / "plain", changes)
    cut = train(tiny_base, data, tmp_path / "cut", changes, run_out_of_memory, 1, 45)
    assert [job.status for job in (*plain, *cut)] == [0] * 4, [job.output for job in (*plain, *cut)]
    assert ["the memory of the GPU ran out" in job.output for job in cut] == [False, True]
    torch.testing.assert_close(adapter_of(tmp_path / "cut"), adapter_of(tmp_path / "plain"), rtol=0, atol=1e-4)
