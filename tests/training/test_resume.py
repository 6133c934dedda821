# SPDX-License-Identifier: Apache-2.0
"""Restarted trainings: the checkpoints that they resume from, their settings, and refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.training.checkpoint_file import read_checkpoint, write_checkpoint
from nemo_launcher.training.record import dropout_changes
from tests.engine import squad_records, tiny_gpt_nemo, write_jsonl, write_squad
from tests.training.runs import (
    adapter_of,
    checkpoints_in,
    last_of,
    moved,
    names_in,
    summary_of,
    train,
)

pytestmark = pytest.mark.integration


# --- which checkpoint -----------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_for_the_next_one(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    damage(last)
    (folder / "results/checkpoints" / "left-unfinished").touch()  # a marker file of NeMo
    shutil.copy(folder / "results/checkpoints" / last.name.replace("-last", ""), last.with_name("other-last.ckpt"))
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    assert f"{last} is damaged (its checksum is wrong); renamed to {last.name}.damaged" in job.output
    assert "resuming at step 4 " in job.output
    assert names_in(folder).count(last.name) == 1
    assert "other-last.ckpt" not in names_in(folder)


def test_only_damaged_checkpoints_are_reported_at_every_start(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    for path in checkpoints_in(folder):
        damage(path)
    for _ in range(2):
        job = train(tiny_base, data, folder)
        assert job.status == 2
        assert "has no intact checkpoint: 3 damaged" in job.output
        assert f"start over: remove {folder}/results" in job.output


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("named", [True, False], ids=["resume_from_checkpoint", "in_the_folder"])
def test_a_pickled_checkpoint_is_refused_by_name(named: bool, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / ("old.ckpt" if named else "job/results/checkpoints/x-last.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": Payload(tmp_path / "run")}, path)
    changes = {"trainer.resume_from_checkpoint": str(path)} if named else {}
    job = train(tiny_base, data, tmp_path / "job", changes)
    assert job.status == 2
    assert f"{path}: cannot be resumed: torch.save wrote it" in job.output
    assert "model.restore_path" in job.output
    assert not (tmp_path / "run").exists()


def test_resume_from_checkpoint_goes_on_from_a_chosen_one(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    (checkpoint,) = (finished / "results/checkpoints").glob("*step=4.ckpt")
    job = train(tiny_base, data, tmp_path, {"trainer.resume_from_checkpoint": str(checkpoint)})
    assert job.status == 0, job.output
    assert "resuming at step 4 " in job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=0, atol=0)


# --- with what it was trained ---------------------------------------------------------------------------------------


def test_settings_that_decide_the_result_are_refused_by_name(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    changes = {"model.seed": 5, "model.optim.lr": 0.5, "model.global_batch_size": 8, "trainer.max_epochs": 2}
    job = train(tiny_base, data, folder, changes)
    assert job.status == 2
    assert "model.seed: 1234 -> 5" in job.output
    assert "model.optim.lr: 0.02 -> 0.5" in job.output
    assert "model.global_batch_size: 4 -> 8" in job.output
    assert "max_epochs" not in job.output


def test_data_that_changed_under_the_same_path_are_refused(one_epoch: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder, data = moved(one_epoch, tmp_path), write_squad(tmp_path / "data")
    write_jsonl(data / "squad_train.jsonl", squad_records(16, seed=7))
    job = train(tiny_base, data, folder)
    assert job.status == 2
    assert f"model.data.train_ds: {data}/squad_train.jsonl: its content changed" in job.output
    assert "validation_ds" not in job.output
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})  # complete, but not with this data
    assert job.status == 2
    assert "its content changed" in job.output


def test_another_base_is_refused_and_a_moved_one_is_not(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    other = tiny_gpt_nemo(tmp_path / "other/base.nemo", seed=3)
    job = train(other, data, folder)
    assert job.status == 2
    assert "is not the base of the checkpoint: its weights are sha256:" in job.output
    job = train(Path(shutil.copy(tiny_base, tmp_path / "moved.nemo")), data, folder)
    assert job.status == 0, job.output
    assert summary_of(folder)["steps"] == 8


def test_other_threads_and_sizes_are_said(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    content = read_checkpoint(last)
    content["record"]["environment"] |= {"threads": 99, "torch": "2.0"}
    content["record"]["config"]["model"]["pipeline_model_parallel_size"] = 2
    write_checkpoint(last, content)
    os.utime(last, ns=(2**62, 2**62))
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    assert "threads 99 -> 1, model.pipeline_model_parallel_size 2 -> 1: the last digits may differ" in job.output
    assert "torch 2.0 -> " in job.output


def test_a_checkpoint_of_010_with_dropout_goes_on_and_says_that_its_masks_were_others(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    changes = {"model.adapter_tuning.adapter_dropout": 0.1}
    job = train(tiny_base, data, tmp_path, changes | {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    last = last_of(tmp_path)
    content = read_checkpoint(last)
    del content["record"]["dropout_seeds"]  # 0.1.0 did not write it
    content["record"]["environment"]["nemo-launcher"] = "0.1.0"
    write_checkpoint(last, content)
    os.utime(last, ns=(2**62, 2**62))
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0, job.output
    assert "model.adapter_tuning.adapter_dropout: release 0.1.0 drew other dropout masks" in job.output
    assert summary_of(tmp_path)["steps"] == 8


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"adapter_tuning": {"adapter_dropout": 0.0}}, None),
        ({"ia3_tuning": {}}, None),
        ({"adapter_tuning": {"adapter_dropout": 0.1}}, "model.adapter_tuning.adapter_dropout"),
        ({"ia3_tuning": {}, "nemo_compat": True}, "model.nemo_compat"),
    ],
)
def test_other_dropout_masks_are_told_where_any_are_drawn(model: dict[str, Any], named: str | None) -> None:
    before = {"environment": {"nemo-launcher": "0.1.0"}}
    after = {"dropout_seeds": "blake2b", "config": {"model": model}}
    line = dropout_changes(before, after)
    assert (line is None) if named is None else (named in str(line))
    assert dropout_changes(after, after) is None
