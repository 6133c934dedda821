# SPDX-License-Identifier: Apache-2.0
"""Files are written atomically; leftovers of killed processes are recognized by name and removed."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.errors import WriteError, environment_message
from nemo_launcher.files import atomic as files
from nemo_launcher.files import owner
from nemo_launcher.files.owner import Owner

pytestmark = pytest.mark.unit

_WRITER = """
import sys
from nemo_launcher.files import atomic as files
with files.atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def _temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if files.owner_of(path) is not None]


def _start_writer(target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(target)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def test_a_killed_writer_leaves_the_old_file_and_its_temporary_is_swept_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model.nemo"
    target.write_text("old")
    writer = _start_writer(target)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert target.read_text() == "old"
    assert len(_temporaries(tmp_path)) == 1
    files._swept.discard(tmp_path)
    files.write_text(tmp_path / "other", "x")
    assert _temporaries(tmp_path) == []


def test_a_live_writers_temporary_stays_while_others_write(tmp_path: Path) -> None:
    writer = _start_writer(tmp_path / "model.nemo")
    files._swept.discard(tmp_path)
    files.write_text(tmp_path / "other", "x")
    assert len(_temporaries(tmp_path)) == 1
    writer.communicate("")
    assert (tmp_path / "model.nemo").read_text() == "half"
    assert _temporaries(tmp_path) == []


def test_a_reused_process_id_is_another_owner(tmp_path: Path) -> None:
    mine = owner.this_process()
    reused = Owner(mine.host, mine.place, mine.pid, mine.birth - 1)
    left = tmp_path / f".model{files.MARK}{reused}-00000000.tmp"
    live = tmp_path / f".model{files.MARK}{mine}-00000000.tmp"
    for path in (left, live):
        path.touch()
    files._swept.discard(tmp_path)
    files.sweep(tmp_path)
    assert (left.exists(), live.exists()) == (False, True)


def test_another_machines_temporary_goes_only_when_it_is_old(tmp_path: Path) -> None:
    away = Owner("elsewhere", "00000000", 1, 1)
    fresh = tmp_path / f".new{files.MARK}{away}-00000000.tmp"
    old = tmp_path / f".old{files.MARK}{away}-00000000.tmp"
    folder = tmp_path / f".folder{files.MARK}{away}-00000000.tmp"
    folder.mkdir()
    for path in (fresh, old, folder / "member"):
        path.touch()
    then = old.stat().st_mtime - files.MAX_AGE_S - 60
    for path in (old, folder / "member", folder):
        os.utime(path, (then, then))
    files._swept.discard(tmp_path)
    files.sweep(tmp_path)
    assert (fresh.exists(), old.exists(), folder.exists()) == (True, False, False)


def test_a_jump_of_this_machines_clock_ages_nobody_elses_temporary(tmp_path, monkeypatch) -> None:
    fresh = tmp_path / f".new{files.MARK}{Owner('elsewhere', '00000000', 1, 1)}-00000000.tmp"
    fresh.touch()
    monkeypatch.setattr("time.time", lambda: 4e9)
    files._swept.discard(tmp_path)
    files.sweep(tmp_path)
    assert fresh.exists()


@pytest.mark.parametrize("name", ["x", "x" * 250, "é" * 125, "模" * 83, ".hidden", "a b\nc"])
def test_any_file_name_has_a_temporary_name_that_fits_and_tells_its_owner(tmp_path: Path, name: str) -> None:
    with files.atomic_path(tmp_path / name) as temporary:
        assert files.owner_of(temporary) == owner.this_process()
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_of_others_are_no_temporaries_of_ours() -> None:
    for name in (".x.tmp", "x.nemo-launcher-a-b.tmp", ".x.nemo-launcher-.tmp", f".x{files.MARK}h-0-1-2-00000000.tmp"):
        assert files.owner_of(Path(name)) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk full while writing"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk full while writing"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk quota used up while writing"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
    ],
)
def test_an_error_of_the_disk_names_the_target(tmp_path: Path, error: Exception, said: str) -> None:
    target = tmp_path / "model.nemo"
    with pytest.raises(WriteError) as caught, files.atomic_path(target):
        raise error
    message = environment_message(caught.value)
    assert message is not None
    assert said in message
    assert str(target) in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [files.atomic_path, files.scratch_folder])
def test_a_folder_without_permission_names_the_target(tmp_path: Path, monkeypatch, writer) -> None:
    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    for name in ("open", "mkdir"):
        monkeypatch.setattr(os, name, refused)
    with pytest.raises(WriteError) as caught, writer(tmp_path / "model.nemo"):
        pass
    assert environment_message(caught.value) == f"{tmp_path}/model.nemo cannot be written: permission denied"


def test_an_error_of_a_source_names_the_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, files.atomic_path(tmp_path / "copy") as temporary:
        temporary.write_bytes((tmp_path / "absent").read_bytes())
    assert caught.value.filename == str(tmp_path / "absent")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "protected").write_text("old")
    (tmp_path / "protected").chmod(0o444)
    (tmp_path / "file").write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, said in {
        "folder": "is a folder",
        "pipe": "is a device or pipe",
        "circle": "a symbolic link leads back to itself",
        "protected": "is write-protected",
        "file/below": "Not a directory",
        "x" * 256: "a name or path is too long",
    }.items():
        with pytest.raises(WriteError) as caught:
            files.write_text(tmp_path / name, "new")
        message = environment_message(caught.value)
        assert message is not None
        assert said in message
        assert str(tmp_path / name) in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(WriteError):
        files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_permissions_are_those_of_a_normal_file_and_no_more_open_than_its_sources(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        files.write_text(tmp_path / "normal", "x")
        secret = tmp_path / "secret"
        secret.write_text("x")
        secret.chmod(0o600)
        with files.atomic_path(tmp_path / "cache", like=[tmp_path / "normal", secret]) as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o600  # also while it is written
        files.write_text(secret, "again")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"normal": 0o644, "secret": 0o600, "cache": 0o600}


def test_json_is_valid_or_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(tmp_path / "x.json", {"loss": [value]})
    assert list(tmp_path.iterdir()) == []
    values = files.finite_or_none({"loss": [float("nan"), 1.5], "rate": (float("-inf"),), "n": 3})
    files.write_json(tmp_path / "x.json", values)
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": [None, 1.5], "rate": [None], "n": 3}


def test_a_scratch_folder_stands_beside_the_target_and_goes(tmp_path: Path) -> None:
    with files.scratch_folder(tmp_path / "model.nemo") as folder:
        (folder / "member").write_text("x")
        assert folder.parent == tmp_path
        assert files.owner_of(folder) == owner.this_process()
    assert list(tmp_path.iterdir()) == []


def test_own_temporaries_go_on_request_but_not_a_parents(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "x") as temporary:
        child = os.fork()
        if child == 0:
            files.remove_own_temporaries()
            os._exit(0)
        os.waitpid(child, 0)
        assert temporary.exists()
        files.remove_own_temporaries()
        assert not temporary.exists()
        temporary.write_text("x")
