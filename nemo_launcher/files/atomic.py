# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a crash, a full disk or a concurrent process never leaves a partial file behind.

A file is written under a temporary name beside its target and renamed once it is flushed to the disk. The temporary
name identifies the writing process, so that the next run can recognise and remove the leftovers of a killed one.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_launcher.errors import WriteError
from nemo_launcher.files.foreign import MAX_NAME_BYTES
from nemo_launcher.files.owner import Owner, this_process

MARK = ".nemo-launcher-"
"""Part of the name of every temporary file; lock files start with it."""
MAX_AGE_S = 24 * 3600.0
"""Seconds after the last change of another machine's temporary until its owner is presumed dead."""

_TEMPORARY = re.compile(r"\..*" + re.escape(MARK) + r"(?P<owner>.+)-[0-9a-f]{8}\.tmp", re.DOTALL)
_own: dict[Path, int] = {}
"""This process's temporaries, with its process id: a forked child must not remove those of its parent."""
_swept: set[Path] = set()


@contextlib.contextmanager
def atomic_path(
    target: str | os.PathLike[str], *, like: Iterable[str | os.PathLike[str]] = (), mode: int = 0o666
) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target` in one step, on failure it is removed.

    The content is flushed before the rename, so a reader sees the old file or the complete new one. A symbolic link is
    followed, and the file it points to is replaced. like: files that the content comes from; the new file is no more
    accessible to others than they or the replaced file are. mode: permissions before the umask.

    Raises WriteError, which names `target`, when it cannot be written: the disk is full, or `target` is a folder, a
    device or write-protected.
    """
    named, target = Path(target), Path(os.path.realpath(target))
    with _errors_name(named, target):
        _check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
    temporary = temporary_name(target)
    with _errors_name(named, temporary):
        _create(temporary, _permissions([target, *map(Path, like)], mode))
    try:
        with _errors_name(named, temporary):
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, target)
            _flush_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _own.pop(temporary, None)


@contextlib.contextmanager
def scratch_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `target` for intermediate files; it is removed at the end.

    TMPDIR is not used because it may be small. Raises WriteError, which names `target`.
    """
    named, target = Path(target), Path(os.path.realpath(target))
    with _errors_name(named, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
    folder = temporary_name(target)
    with _errors_name(named, folder):
        folder.mkdir(mode=0o700)
    _own[folder] = os.getpid()
    try:
        with _errors_name(named, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.pop(folder, None)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON to `target`, whole or not at all.

    Raises ValueError for numbers that are not finite, which JSON does not have; see `finite_or_none`.
    """
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite_or_none(value: object) -> object:
    """Return `value` with every number that is not finite, at any depth, replaced by None."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


# --- temporaries --------------------------------------------------------------------------------------------------


def temporary_name(target: Path) -> Path:
    """Return an unused name beside `target` that contains the owner and fits the file system's limit on length."""
    suffix = f"{MARK}{this_process()}-{secrets.token_hex(4)}.tmp"
    room = MAX_NAME_BYTES - 1 - len(suffix)
    stem = os.fsencode(target.name)[:room].decode("utf-8", errors="ignore")
    return target.with_name(f".{stem}{suffix}")


def owner_of(path: Path) -> Owner | None:
    """Return the process that a temporary's name identifies; None for any other file."""
    found = _TEMPORARY.fullmatch(path.name)
    return None if found is None else Owner.parse(found["owner"])


def is_abandoned(path: Path, now: float) -> bool:
    """Return whether a path is a temporary whose owner has ended.

    now: the file system's time. An owner on another machine is presumed dead MAX_AGE_S after the temporary's last
    change.
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
    """Remove the temporaries of killed processes from a folder, once per process and folder."""
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
    """Remove a file, link or folder; ignore failures."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def file_system_time(folder: Path) -> float:
    """Return the time of a folder's file system in seconds since 1970. Raises OSError when it is not writable."""
    probe = temporary_name(folder / "clock")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def remove_own_temporaries() -> None:
    """Remove this process's temporaries; called at exit and by signal handlers that end the process."""
    for path, pid in list(_own.items()):
        if pid == os.getpid():
            remove(path)


atexit.register(remove_own_temporaries)


def _create(temporary: Path, mode: int) -> None:
    """Create an empty temporary file with its final permissions, so that it is never too accessible."""
    _own[temporary] = os.getpid()  # before the file exists, as a signal may arrive in between
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
    except OSError:
        del _own[temporary]
        raise


def _permissions(sources: Iterable[Path], mode: int) -> int:
    """Return `mode` without the permissions that any of the files lacks."""
    for source in sources:
        with contextlib.suppress(OSError):
            mode &= source.stat().st_mode | 0o600
    return mode


def _last_change(path: Path) -> float:
    """Return the time of the last change of a temporary, including files in a temporary folder. Raises OSError."""
    newest = path.lstat().st_mtime
    if path.is_dir() and not path.is_symlink():
        newest = max([newest, *(entry.lstat().st_mtime for entry in path.rglob("*"))])
    return newest


def _check_target(target: Path) -> None:
    """Raise OSError when a rename to `target` would fail or replace something other than a writable regular file."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):  # realpath keeps a link that is part of a cycle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is a device or pipe, not a file")
    if not mode & 0o222:
        raise OSError(errno.EPERM, "is write-protected (chmod u+w makes it writable)")


# --- disk errors --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_name(target: Path, written: Path) -> Iterator[None]:
    """Turn a disk error into a WriteError that names `target`; errors of files other than `written` pass unchanged."""
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
    """Return an exception's OSError: itself, its cause, or one parsed from the message of a library written in Rust."""
    if isinstance(error, OSError):
        return error if error.errno is not None else None
    found = _OS_ERROR.search(str(error))
    if found is not None:
        return OSError(int(found[1]), os.strerror(int(found[1])))
    cause = error.__cause__
    return cause if isinstance(cause, OSError) and cause.errno is not None else None


def _is_below(name: Any, written: Path) -> bool:
    """Return whether an error's file is the written path, is inside it, or is one of its parents."""
    try:
        path = Path(os.fsdecode(name))
    except TypeError:  # a descriptor
        return True
    return path == written or written in path.parents or path in written.parents


def flush_to_disk(path: Path) -> None:
    """Return when a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush the rename as well. Some file systems cannot; then a crash leaves the old file or the complete new one."""
    with contextlib.suppress(OSError):
        flush_to_disk(folder)
