# SPDX-License-Identifier: Apache-2.0
"""Records, exit statuses and progress files with foreign content, or truncated by a full disk."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.clusters import record as records
from nemo_launcher.clusters.process import HOST, identity
from nemo_launcher.clusters.record import JobRecord
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.jobs.table import HEADINGS, WIDTH, table
from nemo_launcher.runtime.progress_file import TrainingState
from tests.workplace import Result

pytestmark = pytest.mark.integration
Console = Callable[..., Result]


def job(folder: Path, name: str = "good", **changes: Any) -> JobRecord:
    """Write the record of a successful local job."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"cluster_type": "interactive", "progress_file": folder / "results/progress.json", "job_id": "7"}
    values |= {"host": HOST, "process": (2**22, "another boot:1"), "submitted": 1.0} | changes
    record = JobRecord(stage="adapter_learning", name=name, folder=folder, outputs=[], **values)
    records.write(record)
    record.exit_status_file.write_text("0\n")
    record.script_file.write_text("true\n")
    return record


DEEP = "[" * 100_000
DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cut": lambda values: json.dumps(values)[:40],
    "empty": lambda values: "",
    "binary": lambda values: b"\xff\xfe\x00",
    "list": lambda values: [1],
    "deep": lambda values: DEEP,
    "nan": lambda values: json.dumps(values | {"submitted": float("nan")}),
    "digits": lambda values: json.dumps(values).replace("1.0", "9" * 5000),
    "submitted": lambda values: values | {"submitted": 1e300},
    "stage": lambda values: values | {"stage": ["a"]},
    "name": lambda values: values | {"name": "../../elsewhere"},
    "cluster": lambda values: values | {"cluster_type": "no such"},
    "outputs": lambda values: values | {"outputs": {"a": 1}},
    "output": lambda values: values | {"outputs": ["a\x00b"]},
    "long": lambda values: values | {"outputs": ["a" * 10_000]},
    "id": lambda values: values | {"job_id": "--all"},
    "process": lambda values: values | {"process": [-1, "x"]},
    "everyone": lambda values: values | {"process": [1, "x"]},
    "progress": lambda values: values | {"progress_file": 5},
    "log": lambda values: values | {"logs": ["/etc/passwd"]},
    "earlier": lambda values: values | {"earlier": [[]]},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_spoils_its_own_row_alone(kind: str, console: Console, tmp_path: Path) -> None:
    job(tmp_path / "one")
    path = job(tmp_path / "two", "bad").record_file
    damaged = DAMAGE[kind](json.loads(path.read_text()))
    if isinstance(damaged, bytes):
        path.write_bytes(damaged)
    else:
        path.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    shown = console("status", tmp_path)
    assert shown.status == 0, shown.err
    found = {j["name"]: j["state"] for j in json.loads(console("status", tmp_path, "--json").out)["jobs"]}
    assert found == {"good": "completed", "bad": "damaged record"}
    assert "bad_job.json" in shown.out
    for verb in ("rerun", "logs"):
        assert console(verb, tmp_path / "two").status == 2
    assert console("cancel", "--all", "--results-dir", tmp_path).out == "no job waits or runs\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "a"}', '{"step": 1, "max_steps": 1e400}', DEEP])
def test_damaged_progress_and_exit_status_are_told_in_their_row(content: str, console: Console, tmp_path: Path) -> None:
    record = job(tmp_path / "one")
    job(tmp_path / "two")
    assert record.progress_file is not None
    record.progress_file.parent.mkdir()
    record.progress_file.write_text(content)
    record.exit_status_file.write_text("9" * 10_000)
    first, second = json.loads(console("status", tmp_path, "--json").out)["jobs"]
    assert first["reason"] == "killed; progress.json cannot be read; good_exit_status cannot be read"
    assert (second["state"], second["reason"]) == ("completed", "")


def test_links_and_devices_for_records_are_not_followed_for_ever(console: Console, tmp_path: Path) -> None:
    job(tmp_path / "one")
    (tmp_path / "two").mkdir()
    os.mkfifo(tmp_path / "two/pipe_job.json")
    (tmp_path / "two/zero_job.json").symlink_to("/dev/zero")
    (tmp_path / "two/gone_job.json").symlink_to("nowhere")
    states = [j["state"] for j in json.loads(console("status", tmp_path, "--json").out)["jobs"]]
    assert sorted(states) == ["completed", *["damaged record"] * 3]


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that leads a process group and is not a job."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_record_that_names_another_process_ends_nothing(
    console: Console, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    job(tmp_path / "one", process=identity(bystander.pid), job_id=str(bystander.pid))
    result = console("cancel", "--all", "--results-dir", tmp_path)
    assert (result.status, "does not run" in result.err) == (1, True)
    assert bystander.poll() is None
    job(tmp_path / "one", process=identity(os.getpid()), job_id=str(os.getpid()))
    handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was ended"))
    assert console("cancel", "--all", "--results-dir", tmp_path).status == 1
    signal.signal(signal.SIGTERM, handler)


def test_a_script_of_somewhere_else_or_somebody_else_is_not_run(console: Console, tmp_path: Path) -> None:
    record = job(tmp_path / "one")
    elsewhere = tmp_path / "elsewhere.sh"
    elsewhere.write_text(f"touch {tmp_path}/ran\n")
    record.script_file.unlink()
    record.script_file.symlink_to(elsewhere)
    assert console("rerun", tmp_path / "one").status == 2
    record.script_file.unlink()
    record.script_file.write_text(elsewhere.read_text())
    if os.geteuid() == 0:
        os.chown(record.script_file, 12345, 12345)
        refused = console("rerun", tmp_path / "one")
        assert (refused.status, "belongs to another user" in refused.err) == (2, True)
    assert not (tmp_path / "ran").exists()


def test_a_moved_folder_shows_its_own_logs(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    record = job(folder, logs=[folder / "log-good_7.out"])
    (folder / "log-good_7.out").write_text("hello\n")
    folder.rename(tmp_path / "two")
    assert console("logs", tmp_path / "two").out == "hello\n"
    assert record.folder != tmp_path / "two"


def test_folders_that_cannot_be_read_are_told(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "one")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # root can read everything
    result = console("status", tmp_path)
    assert (result.status, f"1 folder cannot be read: {tmp_path}/closed" in result.err) == (1, True)
    assert "completed" in result.out


@pytest.mark.parametrize("columns", [60, WIDTH, 120, 200])
def test_a_table_fits_on_a_screen(columns: int, tmp_path: Path) -> None:
    record = job(tmp_path / ("folder_of_a_very_long_name_" * 5), "a_job_whose_name_is_as_long_as_" + "x" * 80)
    record = dataclasses.replace(record, stage="conversion_hf2nemo", job_id="123456789", cluster_type="bcm")
    training = TrainingState(1_000_000, 9_999_999, 1234.567, 1e6, 1e9)
    found = [
        JobStatus(record, "out_of_memory", "a reason " * 40, training=training),
        JobStatus(record, "pending", "Dependency: afterok:123456789", training=training),
        JobStatus(dataclasses.replace(record, name="caf\u00e9\n\x1b[31m"), "running", training=training),
    ]
    lines = table(found, tmp_path, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert len([line for line in lines if line.startswith("con")]) == 3
    assert columns < WIDTH or len([line for line in lines if line.startswith("conversion")]) == 3
    assert "\x1b" not in "\n".join(lines)
    assert columns < WIDTH or all(word in "\n".join(lines) for word in ("out_of_memory", "pending", "running"))


def test_a_usual_table_shows_all_that_matters_in_eighty_columns(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = dataclasses.replace(job(tmp_path / "adapter_learning_squad", "squad_llama_7b"), job_id="1234567")
    record = dataclasses.replace(record, stage="adapter_learning", cluster_type="bcm")
    training = TrainingState(1200, 10000, 1.234, 1e3, 1e9)
    found = [
        JobStatus(record, "running", training=training),
        JobStatus(record, "pending", "Dependency: afterok:123456789"),
        JobStatus(record, "failed", "ended without writing " + str(tmp_path / "megatron_llama_adapter.nemo")),
    ]
    heading, first, second, *rest = table(found, tmp_path).splitlines()
    assert heading.split() == ["stage", "job", "id", "state", "step", "val_loss", "left"]
    assert first.split()[:5] == ["adapter_learning", "squad_llama_7b", "1234567", "running", "1200/10000"]
    assert second.split()[:3] == ["adapter_learning", "squad_llama_7b", "1234567"]
    assert rest[0] == "    Dependency: afterok:123456789"
    wide = table(found, tmp_path, None).splitlines()
    assert wide[0].split() == list(HEADINGS)
    assert wide[1].split()[-1] == "adapter_learning_squad"
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, console("status", tmp_path).out.splitlines())) <= 60
    assert console("status", tmp_path, "--wide").out.splitlines()[0].split() == list(HEADINGS)
