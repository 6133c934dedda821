# SPDX-License-Identifier: Apache-2.0
"""The one door for files that are written: a crash, a full disk or a second process never leaves half of one behind.

A file is written under a temporary name beside its target and renamed when it is on the disk. The temporary name holds
who writes it, so that what a killed process has left is known and removed by the next start.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_launcher.errors import WriteError
from nemo_launcher.files.foreign import MAX_NAME_BYTES
from nemo_launcher.files.owner import Owner, this_process

MARK = ".nemo-launcher-"
"""In the names of temporaries, and at the beginning of those of locks."""
_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp")
_MARGIN_BYTES = 1 << 16
MAX_AGE_S = 24 * 3600.0
"""Since the last change of a temporary of another machine's, after which its owner is taken for dead."""

_TEMPORARY = re.compile(r"\..*" + re.escape(MARK) + r"(?P<owner>.+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_own: dict[Path, int] = {}
"""Temporaries of this process, with its id: a forked child leaves its parent's alone."""
_swept: set[Path] = set()


@contextlib.contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, like: Iterable[str | os.PathLike[str]] = (), mode: int = 0o666
) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target` in one step, on failure it is removed.

    The content is on the disk before the name changes, so a reader sees the old file or the whole new one. A link is
    followed: the file it leads to is replaced. like: files that the content is made from; the new file is no more open
    to others than they are, nor than the file that it replaces. mode: permissions before the umask.

    Raises WriteError, which names `target`, when that cannot be written: a full disk, or it is a folder, a device or
    write-protected.
    """
    named, target = Path(target), Path(os.path.realpath(target))
    with _errors_name(named, target):
        _check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _new_temporary(target, _permissions([target, *map(Path, like)], mode))
    try:
        with _errors_name(named, temporary):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, target)
            _flush_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _own.pop(temporary, None)


@contextlib.contextmanager
def scratch_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `target`, for files that are read again before it is written; removed at the end.

    It stands there rather than in TMPDIR, which may be small. Raises WriteError, which names `target`.
    """
    named, target = Path(target), Path(os.path.realpath(target))
    with _errors_name(named, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        folder = temporary_name(target)
        folder.mkdir(mode=0o700)
    _own[folder] = os.getpid()
    try:
        with _errors_name(named, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.pop(folder, None)


def roomy_folder(num_bytes: int) -> Path:
    """Return a folder for temporary files of so many bytes: TMPDIR, or where it is too small another of the system's.

    When none has room it is the one with most; writing there tells what is missing.
    """
    places = dict.fromkeys([tempfile.gettempdir(), *_TEMPORARY_FOLDERS, os.getcwd()])
    free = {place: shutil.disk_usage(place).free for place in places if os.access(place, os.W_OK | os.X_OK)}
    wanted = num_bytes + num_bytes // 8 + _MARGIN_BYTES
    return Path(next((place for place in free if free[place] >= wanted), max(free, key=free.__getitem__)))


@contextlib.contextmanager
def temporary_folder(num_bytes: int) -> Iterator[Path]:
    """Yield an empty folder with room for so many bytes, of this process alone; removed at the end."""
    with scratch_folder(roomy_folder(num_bytes) / "nemo-launcher") as folder:
        yield folder


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON to `target`, whole or not at all.

    Raises ValueError for a number that is not finite, which JSON cannot hold (finite_or_none).
    """
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite_or_none(value: object) -> object:
    """Return `value` with every number that is not finite, at any depth, replaced by None: absent rather than wrong."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


# --- temporaries --------------------------------------------------------------------------------------------------


def temporary_name(target: Path) -> Path:
    """Return a name beside `target` that nobody has, with the owner in it, no longer than file systems take."""
    suffix = f"{MARK}{this_process()}-{secrets.token_hex(4)}.tmp"
    room = MAX_NAME_BYTES - 1 - len(suffix)
    stem = os.fsencode(target.name)[:room].decode("utf-8", errors="ignore")
    return target.with_name(f".{stem}{suffix}")


def owner_of(path: Path) -> Owner | None:
    """Return who made a temporary, by its name; None when it is no temporary of this project."""
    found = _TEMPORARY.fullmatch(path.name)
    return None if found is None else Owner.parse(found["owner"])


def is_abandoned(path: Path, now: float) -> bool:
    """Whether a path is a temporary whose owner has ended.

    now: the time by the clock of the file system. The owner of another machine's is taken for dead MAX_AGE_S after the
    last change.
    """
    owner = owner_of(path)
    if owner is None:
        return False
    if owner.is_here:
        return owner.is_dead
    try:
        return _last_change(path) < now - MAX_AGE_S
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder; once in a process for each folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if MARK in entry.name and entry.name.endswith(".tmp")]
        if left:
            now = file_system_time(folder)
            for path in left:
                if is_abandoned(path, now):
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file, link or folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def file_system_time(folder: Path) -> float:
    """Return the time by the clock of a folder's file system, in seconds since 1970; raises OSError."""
    probe = temporary_name(folder / "clock")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def remove_own_temporaries() -> None:
    """Remove the temporaries of this process: for the handler of a signal that ends it, and at its exit."""
    for path, pid in list(_own.items()):
        if pid == os.getpid():
            remove(path)


atexit.register(remove_own_temporaries)


def _new_temporary(target: Path, mode: int) -> Path:
    """Make the empty temporary file of `target`, closed to others from the start where it shall be."""
    sweep(target.parent)
    temporary = temporary_name(target)
    _own[temporary] = os.getpid()  # before it is there: a signal may come in between
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
    except OSError:
        del _own[temporary]
        raise
    return temporary


def _permissions(sources: Iterable[Path], mode: int) -> int:
    """Return `mode` with nothing that one of the files is closed for."""
    for source in sources:
        with contextlib.suppress(OSError):
            mode &= source.stat().st_mode | 0o600
    return mode


def _last_change(path: Path) -> float:
    """Return when a temporary, or a file in a temporary folder, was last changed; raises OSError."""
    newest = path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        newest = max([newest, *(entry.lstat().st_mtime for entry in path.rglob("*"))])
    return newest


def _check_target(target: Path) -> None:
    """Raise OSError when a rename to `target` would fail, or replace what is no file of the user's to replace."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):  # realpath leaves a link where links go round in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a device or pipe, not a file")
    if not mode & 0o222:
        raise OSError(errno.EPERM, "is write-protected (chmod u+w makes it writable)")


# --- the disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_name(target: Path, written: Path) -> Iterator[None]:
    """Turn an error of the disk into one that names `target`; one of another file than `written` passes as it is."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        cause = _disk_error(error)
        if cause is None or (cause.filename is not None and not _is_below(cause.filename, written)):
            raise
        raise WriteError(cause.errno, cause.strerror, str(target)) from error


_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _disk_error(error: BaseException) -> OSError | None:
    """Return the OSError that an exception is, was raised from, or tells of as libraries written in Rust do."""
    if isinstance(error, OSError):
        return error if error.errno is not None else None
    found = _OS_ERROR.search(str(error))
    if found is not None:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    cause = error.__cause__
    return cause if isinstance(cause, OSError) and cause.errno is not None else None


def _is_below(name: Any, written: Path) -> bool:
    """Whether an error's file is the one written, in it, or the folder that it is in."""
    try:
        path = Path(os.fsdecode(name))
    except TypeError:  # a descriptor
        return True
    return path == written or written in path.parents or path in written.parents


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Put the new name on the disk too; some file systems cannot, which leaves the old file or the whole new one."""
    with contextlib.suppress(OSError):
        _flush_to_disk(folder)
