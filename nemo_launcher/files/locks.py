# SPDX-License-Identifier: Apache-2.0
"""Folder locks, which make checking a folder and starting a job in it one atomic step.

The file system's lock (flock) is released whenever its process ends. Some network file systems have no locks, or
locks that work only within one machine. The lock file therefore names its owner, who touches it every few seconds; an
owner on another machine is alive while the file's time changes, even if the machines' clocks differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from nemo_launcher.errors import Problem, UserError, WriteError
from nemo_launcher.files.atomic import MARK, sweep, temporary_name
from nemo_launcher.files.foreign import load_json
from nemo_launcher.files.owner import Owner, this_process, user_name

SUFFIX = ".lock"
TOUCHED_EVERY_S = 10.0
SILENCE_S = 35.0
"""Seconds without a touch after which an owner on another machine is presumed dead: a little over three touches."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_ATTEMPTS = 1000
"""Maximum attempts to create a lock file while other processes create and remove it."""
_BY_JOB = "is in use by a job:"
_warned: set[int] = set()
"""File systems whose missing locks were reported, as device numbers."""
_held: set[int] = set()
"""Descriptors of the lock files that this process holds."""


def _close_in_child() -> None:
    """Close the lock files in a forked child, which must not keep the locks when it outlives this process."""
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], purpose: str) -> Iterator[None]:
    """Hold a folder's lock for one purpose.

    purpose: "launch" while configuration and record are written, "job" while a local job's script runs, "run" while
    results are written. A missing folder is created, and removed again if it stays empty. The lock of a killed process
    is taken over. Raises UserError, which names the holder, when another live process has the lock, and WriteError
    when the lock file cannot be created.
    """
    folder = Path(folder)
    path = folder / f"{MARK}{purpose}{SUFFIX}"
    try:
        made = [above for above in (folder, *folder.parents) if not above.exists()]
        descriptor = _acquired(path, purpose)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error
    _held.add(descriptor)
    stop, process = threading.Event(), os.getpid()
    touching = threading.Thread(target=_keep_touching, args=(descriptor, stop), name="folder lock", daemon=True)
    touching.start()
    try:
        yield
    finally:
        if os.getpid() == process:  # a forked child has no lock to release
            stop.set()
            touching.join()
            _held.discard(descriptor)
            _release(path, descriptor)
            with contextlib.suppress(OSError):  # folders that are in use stay
                for above in made:
                    above.rmdir()


def place_of_file(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return the folder and purpose of the lock for writing one file; all links to a file share its lock."""
    target = Path(os.path.realpath(path))
    name = unicodedata.normalize("NFKC", target.name).casefold()  # some file systems treat these as one file
    return target.parent, f"write-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def holder(path: Path) -> dict[str, object] | None:
    """Return the content of a lock file, which describes its owner; None when it cannot be read."""
    try:
        value = load_json(path)
        return value if isinstance(value, dict) and Owner.parse(str(value.get("owner"))) is not None else None
    except (OSError, UserError):
        return None


def is_stale(path: Path) -> bool:
    """Return whether a lock file's owner was a process on this machine that has ended."""
    found = holder(path)
    owner = Owner.parse(str(found["owner"])) if found is not None else None
    return owner is not None and owner.is_dead


def _acquired(path: Path, purpose: str) -> int:
    """Lock the file for this process and return its descriptor."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        _make_folder(path.parent)
        made = not os.path.lexists(path)
        try:
            descriptor = _made(path, purpose) if made else os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileExistsError, FileNotFoundError):  # created or removed in between
            if not attempts_left:  # or it can never be created, as in /proc
                raise
            continue
        try:
            if not _flock(descriptor, path, purpose):
                if made:  # without locks, the process that creates the file holds it
                    return descriptor
                _check_alive(path, purpose)
                _move_aside(path, purpose)
            elif _is_still(path, descriptor):
                _check_other_machine(path, purpose)
                _write_owner(descriptor, purpose)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise UserError(_is_held(path, purpose))  # other processes were faster every time


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, which another process may remove at the same time."""
    with contextlib.suppress(FileNotFoundError):
        folder.mkdir(parents=True, exist_ok=True)


def _flock(descriptor: int, path: Path, purpose: str) -> bool:
    """Take the file system's lock; return False if it has no locks. Raises UserError when another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(_is_held(path, purpose)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_once(path)
        return False
    return True


def _warn_once(path: Path) -> None:
    device = path.parent.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        print(f"{path.parent}: this file system has no locks; owner files are used instead", file=sys.stderr)


def _move_aside(path: Path, purpose: str) -> None:
    """Remove a dead owner's file. Raises UserError when another process took it over first."""
    before, aside = _content(path), temporary_name(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        is_other = _content(aside) != before
        if is_other:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        if is_other:
            raise UserError(_is_held(path, purpose))


def _made(path: Path, purpose: str) -> int:
    """Create the lock file with this process as its owner in one step. Raises FileExistsError."""
    sweep(path.parent)
    temporary = temporary_name(path)  # recognised and removed by the next run if this process is killed
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _write_owner(descriptor, purpose)
        os.link(temporary, path)
        return descriptor
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in (errno.EPERM, *_NO_LOCKS):  # no hard links either
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            _write_owner(descriptor, purpose)
            return descriptor
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_other_machine(path: Path, purpose: str) -> None:
    """Raise UserError when a live process on another machine owns the file: locks may not work across machines."""
    found = holder(path)
    owner = Owner.parse(str(found["owner"])) if found is not None else None
    if owner is not None and not owner.is_here:
        _wait_for_silence(path, purpose, owner)


def _check_alive(path: Path, purpose: str) -> None:
    """Raise UserError unless the file's owner has ended."""
    found = holder(path)
    owner = Owner.parse(str(found["owner"])) if found is not None else None
    if owner is not None and owner.is_here:
        if not owner.is_dead:
            raise UserError(_is_held(path, purpose))
    else:
        _wait_for_silence(path, purpose, owner)


def _wait_for_silence(path: Path, purpose: str, owner: Owner | None) -> None:
    """Watch the file for SILENCE_S seconds; raise UserError when it is touched in that time."""
    first, end = _touched(path), time.monotonic() + SILENCE_S
    if first is not None:
        host = owner.host if owner is not None else "another machine"
        print(f"{path}: left by {host}; waiting {SILENCE_S:.0f} s for a sign of life", file=sys.stderr, flush=True)
    while first is not None and time.monotonic() < end:
        time.sleep(min(1.0, SILENCE_S / 10))
        now = _touched(path)
        if now is not None and now != first:
            raise UserError(_is_held(path, purpose))
        first = now


def _touched(path: Path) -> int | None:
    """Return the file's time in nanoseconds, or None. Opening it makes a network file system ask the server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _is_held(path: Path, purpose: str) -> Problem:
    found = holder(path)
    owner = Owner.parse(str(found["owner"])) if found is not None else None
    if found is None or owner is None:
        who = "another process"
    else:
        who = f"process {owner.pid} on {owner.host} (user {found.get('user')}, since {found.get('since')})"
    what = {"launch": "is being launched into by", "job": _BY_JOB, "run": _BY_JOB}.get(purpose, "is locked by")
    return Problem(str(path.parent), f"{what} {who}", "wait until it ends, or choose another folder")


def _write_owner(descriptor: int, purpose: str) -> None:
    """Write the owner into the lock file; on a full disk the lock is held without it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"owner": str(this_process()), "user": user_name(), "since": since, "purpose": purpose}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _keep_touching(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(TOUCHED_EVERY_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int) -> None:
    """Remove the file while it is still locked, so that no other process locks a file that is about to vanish."""
    with contextlib.suppress(OSError):
        if _is_still(path, descriptor):
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(descriptor)
