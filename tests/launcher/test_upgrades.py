# SPDX-License-Identifier: Apache-2.0
"""Folders written by release 0.1.0: shown by status, skipped if complete, refused if they cannot be resumed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.workplace import MAKE_ADAPTER, Result, Workplace

pytestmark = pytest.mark.unit

Console = Callable[..., Result]
Launch = Callable[..., Result]

NEWER_KEYS = ("torch_compile", "share_prefix")
"""Keys of `model` with a default that an older configuration may lack."""


def as_010_left_it(workplace: Workplace) -> Path:
    """Return the folder of a completed training, with record and configuration in the format of 0.1.0."""
    (record_path,) = workplace.results.rglob("*_job.json")
    folder, record = record_path.parent, json.loads(record_path.read_text())
    keys = ("stage", "name", "outputs", "cluster_type", "progress_file", "job_id", "logs", "submitted", "earlier")
    keys += ("host", "process", "cancelled")
    record_path.write_text(json.dumps({key: record[key] for key in keys}))
    (config_path,) = folder.glob("*_hydra.yaml")
    config = yaml.safe_load(config_path.read_text())
    config["model"]["attention_backend"] = "sdpa"  # the default in that release
    for name in NEWER_KEYS:
        config["model"].pop(name, None)
    reordered = {key: dict(reversed(section.items())) for key, section in reversed(config.items())}
    config_path.write_text(f"# a heading of its own\n{yaml.safe_dump(reordered, sort_keys=False)}")
    for path in folder.glob("*_outputs.json"):
        path.unlink()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_training_is_seen_and_skipped(launch: Launch, console: Console, workplace: Workplace) -> None:
    workplace.stub("train.py", MAKE_ADAPTER)
    arguments = (*workplace.arguments, f"data_dir={workplace.root}/data")
    assert launch(*arguments).status == 0
    folder = as_010_left_it(workplace)
    (job,) = json.loads(console("status", workplace.results, "--json").out)["jobs"]
    assert (job["state"], job["exit_status"], job["outputs_written"]) == ("completed", 0, True)
    before = contents(folder)
    again = launch(*arguments)
    assert (again.status, "is complete; nemo-launcher rerun" in again.out) == (0, True), again.err
    assert contents(folder) == before
    changed = launch(*arguments, "adapter_learning.trainer.max_epochs=9")
    assert (changed.status, "trained" in changed.out) == (0, True), changed.err


def test_a_training_that_cannot_go_on_is_refused_at_launch(launch: Launch, workplace: Workplace) -> None:
    workplace.stub("train.py", "sys.exit(75)")
    assert launch(*workplace.arguments).status == 75
    folder = as_010_left_it(workplace)
    checkpoints = folder / "results" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with zipfile.ZipFile(checkpoints / "val_loss=2.5-step=12-last.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    before = contents(folder)
    again = launch(*workplace.arguments)
    assert again.status == 2
    assert f"{checkpoints} has checkpoints of another release, such as val_loss=2.5-step=12-last.ckpt" in again.err
    assert contents(folder) == before
    assert launch(*workplace.arguments, f"adapter_learning.run.results_dir={folder}_anew").status == 75
