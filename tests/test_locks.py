# SPDX-License-Identifier: Apache-2.0
"""A folder has one holder at a time; a killed holder's lock is free, and one on another machine is observed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.errors import UserError, WriteError
from nemo_launcher.files import locks, owner
from nemo_launcher.files.locks import folder_lock

pytestmark = pytest.mark.unit

_NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""
_HOLDER = """
import os, signal, sys
from nemo_launcher.errors import UserError
from nemo_launcher.files.locks import folder_lock
sys.stdin.readline()
try:
    with folder_lock(sys.argv[1], "run"):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print("refused", error, flush=True)
"""


def _start(folder: Path, prelude: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", prelude + _HOLDER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _go(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()


def _line(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def _foreign(folder: Path) -> Path:
    path = folder / ".nemo-launcher-run.lock"
    path.write_text(json.dumps({"owner": "elsewhere-00000000-7-7", "user": "ann", "since": "today"}))
    return path


@pytest.mark.parametrize("prelude", ["", _NO_LOCKS], ids=["flock", "no locks"])
def test_of_many_that_start_at_once_one_holds_the_folder(tmp_path: Path, prelude: str) -> None:
    started = [_start(tmp_path / "job", prelude) for _ in range(12)]
    for process in started:
        _go(process)
    lines = [_line(process) for process in started]
    assert lines.count("held") == 1
    holder = started[lines.index("held")]
    refusals = [line for line in lines if line != "held"]
    assert all(line.startswith("refused") and str(tmp_path / "job") in line for line in refusals)
    assert any(f"process {holder.pid} on" in line for line in refusals)
    for process in started:
        process.communicate()
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("prelude", ["", _NO_LOCKS], ids=["flock", "no locks"])
def test_a_killed_holder_does_not_keep_it(tmp_path: Path, prelude: str) -> None:
    first = _start(tmp_path, prelude)
    _go(first)
    assert _line(first) == "held"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert locks.is_stale(tmp_path / ".nemo-launcher-run.lock")
    second = _start(tmp_path, prelude)
    _go(second)
    assert _line(second) == "held"
    second.communicate()


def test_a_reused_process_id_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(fcntl, "flock", _without_locks)
    mine = owner.this_process()
    reused = owner.Owner(mine.host, mine.place, mine.pid, mine.birth - 1)
    (tmp_path / ".nemo-launcher-run.lock").write_text(json.dumps({"owner": str(reused)}))
    with folder_lock(tmp_path, "run"), folder_lock(tmp_path, "launch"):
        held = sorted(path.name for path in tmp_path.iterdir())
    assert held == [".nemo-launcher-launch.lock", ".nemo-launcher-run.lock"]
    locks._warned.clear()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("has no locks") <= 1  # reported once for any number of folders


@pytest.mark.parametrize("locked", [True, False], ids=["flock of each machine alone", "no locks"])
def test_a_holder_on_another_machine_is_alive_while_it_touches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    path = _foreign(tmp_path)
    if not locked:
        monkeypatch.setattr(fcntl, "flock", _without_locks)
    times = iter(range(1, 1000))
    # the other machine's activity while this one waits
    monkeypatch.setattr(locks.time, "sleep", lambda _: os.utime(path, (next(times), next(times))))
    with (
        pytest.raises(UserError, match=r"process 7 on elsewhere \(user ann, since today\)"),
        folder_lock(tmp_path, "run"),
    ):
        pass
    assert json.loads(path.read_text())["owner"] == "elsewhere-00000000-7-7"


@pytest.mark.parametrize("locked", [True, False], ids=["flock", "no locks"])
def test_a_holder_on_another_machine_that_is_silent_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    path = _foreign(tmp_path)
    if not locked:
        monkeypatch.setattr(fcntl, "flock", _without_locks)
    monkeypatch.setattr(locks, "SILENCE_S", 0.05)
    with folder_lock(tmp_path, "run"):
        found = locks.holder(path)
        assert found is not None
        assert found["owner"] == str(owner.this_process())


def test_a_child_that_outlives_the_holder_does_not_keep_it(tmp_path: Path) -> None:
    keeps_child = _HOLDER.replace('print("held"', 'os.fork() and signal.pause(); print("held"')
    command = [sys.executable, "-c", keeps_child, str(tmp_path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    _go(process)
    assert _line(process) == "held"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        with folder_lock(tmp_path, "run"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file"), folder_lock(tmp_path / "file", "run"):
        pass


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(WriteError, match="/proc"), folder_lock("/proc", "run"):
        pass


def test_a_damaged_or_hostile_lock_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SILENCE_S", 0.05)
    for content in (b"", b"{", b"[" * 100_000, b'{"owner": 3}', b"\xff" * 100, b'{"owner": "x-00000000-1-1"}'):
        (tmp_path / ".nemo-launcher-run.lock").write_bytes(content)
        with folder_lock(tmp_path, "run"):
            pass
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / ".nemo-launcher-run.lock").symlink_to("elsewhere")
    with pytest.raises(WriteError), folder_lock(tmp_path, "run"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "precious"


def _without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")
