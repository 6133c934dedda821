# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher clean` lists what may be removed, removes exactly that on request, and touches nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.files import atomic as files
from nemo_launcher.files import owner
from nemo_launcher.files.locks import folder_lock
from nemo_launcher.files.owner import Owner
from tests.workplace import Result

pytestmark = pytest.mark.unit
Console = Callable[..., Result]
MONTHS_AGO = 0.0


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with leftovers of every kind, and similar files that are not leftovers."""
    job = tmp_path / "gpt" / "job"
    checkpoints = job / "results" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (job / "squad_job.json").write_text("{}")
    me = owner.this_process()
    dead = Owner(me.host, me.place, me.pid, me.birth - 1)
    cache = tmp_path / ".nemo_launcher_cache"
    cache.mkdir()
    may_go = [
        job / f".adapter.nemo{files.MARK}{dead}-00000000.tmp",
        job / "results" / ".nemo-launcher-run.lock",
        checkpoints / "step=3.ckpt.damaged",
        checkpoints / "step=3.ckpt.damaged2",
        cache / f"{'a' * 64}.samples",
    ]
    stays = [
        job / f".adapter.nemo{files.MARK}{me}-00000000.tmp",
        job / f".other{files.MARK}{Owner('away', '00000000', 1, 1)}-00000000.tmp",
        job / ".notes.tmp",
        job / "results" / "adapter.nemo",
        checkpoints / "step=4.ckpt",
        checkpoints / "notes.damaged",
        tmp_path / "mine.ckpt.damaged",
        cache / f"{'b' * 64}.samples",
        tmp_path / f"{'a' * 64}.samples",
    ]
    for path in may_go + stays:
        path.write_text("x" * 5000)
    (job / "results" / ".nemo-launcher-run.lock").write_text(json.dumps({"owner": str(dead)}))
    for path in (may_go[-1], stays[-1]):
        os.utime(path, (MONTHS_AGO, MONTHS_AGO))
    (job / "results" / ".linked.ckpt.damaged").symlink_to(job / "results" / "adapter.nemo")
    return tmp_path


GOES = [
    "-00000000.tmp",
    ".nemo-launcher-run.lock",
    "step=3.ckpt.damaged",
    "step=3.ckpt.damaged2",
    f"{'a' * 64}.samples",
]


def _listed(result: Result) -> list[str]:
    return [leftover["path"] for leftover in json.loads(result.out)["leftovers"]]


def test_it_shows_what_may_go_and_removes_nothing(console: Console, results: Path) -> None:
    before = sorted(results.rglob("*"))
    found = _listed(console("clean", results, "--json"))
    assert len(found) == len(GOES)
    assert all(any(path.endswith(name) for path in found) for name in GOES)
    shown = console("clean", results)
    assert shown.status == 0
    assert all(path in shown.out for path in found)
    assert "5 to delete" in shown.out
    assert "add --delete" in shown.out
    assert sorted(results.rglob("*")) == before


def test_delete_removes_exactly_what_was_shown(console: Console, results: Path) -> None:
    before = set(results.rglob("*"))
    shown = _listed(console("clean", results, "--json"))
    assert _listed(console("clean", results, "--delete", "--json")) == shown
    assert {str(path) for path in before - set(results.rglob("*"))} == set(shown)
    assert "nothing to clean" in console("clean", results).out


def test_nothing_of_a_job_that_runs_is_listed(console: Console, results: Path) -> None:
    with folder_lock(results / "gpt" / "job" / "results", "run"):
        found = _listed(console("clean", results, "--json"))
    assert [path for path in found if "damaged" in path or path.endswith(".lock")] == []


def test_odd_names_stay_on_their_line(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "a\n\x1b[2Jb"
    folder.mkdir()
    me = owner.this_process()
    (folder / f".x{files.MARK}{Owner(me.host, me.place, me.pid, me.birth - 1)}-00000000.tmp").touch()
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    shown = console("clean", tmp_path)
    assert shown.status == 0
    assert len(shown.out.splitlines()) == 2
    assert "\x1b" not in shown.out


def test_a_folder_that_cannot_be_read_is_told(console: Console, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    shown = console("clean", tmp_path)
    assert shown.status == 0
    assert f"cannot be read: {tmp_path}/closed" in shown.err


FILENAME = "adapter--{val_loss:.3f}-{step}"


def checkpoint(path: Path, step: int, kept: list[str], *, finished: bool) -> None:
    """Write a checkpoint file, as far as it is read without torch."""
    callback = {"best_k_models": dict.fromkeys(kept, 0), "best_model_path": kept[0], "last_model_path": str(path)}
    facts = {"global_step": step, "finished": finished, "callbacks": {"AdapterCheckpoint": callback}}
    text = json.dumps(facts).encode()
    line = b"nemo-launcher checkpoint 1 " + f"{hashlib.sha256(text).hexdigest()} {len(text)} 0\n".encode()
    path.write_bytes(line + text)


@pytest.mark.parametrize(("finished", "damaged"), [(True, False), (False, False), (True, True)])
def test_checkpoints_beyond_those_kept_go_once_training_is_finished(
    tmp_path: Path, console: Console, finished: bool, damaged: bool
) -> None:
    folder = tmp_path / "job/results/checkpoints"
    folder.mkdir(parents=True)
    params = {"filename": FILENAME, "save_top_k": 1}
    config = {"exp_manager": {"checkpoint_callback_params": params}}
    (tmp_path / "job/squad_hydra.yaml").write_text(json.dumps(config))
    best, old, last, older = (
        folder / f"adapter--val_loss={name}.ckpt"
        for name in ("0.100-step=4", "0.200-step=2", "0.300-step=6-last", "0.300-step=5-last")
    )
    for path, step in ((best, 4), (old, 2), (last, 6), (older, 5)):
        checkpoint(path, step, [str(best)], finished=finished)
    copy = folder / "my-copy.ckpt"
    checkpoint(copy, 2, [str(best)], finished=finished)
    if damaged:
        last.write_bytes(last.read_bytes()[:-1] + b"?")
        older.unlink()
    found = json.loads(console("clean", tmp_path, "--json").out)["leftovers"]
    names = [Path(item["path"]).name for item in found]
    assert names == ([old.name, older.name] if finished and not damaged else [])
    console("clean", tmp_path, "--delete")
    assert {path.name for path in folder.iterdir()} >= {best.name, last.name, copy.name}


def test_a_training_leaves_nothing_but_what_it_keeps(tmp_path: Path, console: Console) -> None:
    """Files of other forms in a checkpoints folder stay."""
    folder = tmp_path / "job/results/checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "job/squad_hydra.yaml").write_text("[]")
    (folder / "x-last.ckpt").write_text("PK")
    assert json.loads(console("clean", tmp_path, "--json").out)["leftovers"] == []
