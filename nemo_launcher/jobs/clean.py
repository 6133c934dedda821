# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher clean`: list, and on request delete, what killed and finished jobs have left behind.

Only files with names that this project alone gives are listed, and none that a live process owns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_launcher.files import atomic as files
from nemo_launcher.files import locks
from nemo_launcher.jobs.superseded import superseded

KEPT_DAYS = 30
"""Days since its last use after which a data cache may be deleted."""
_DAY_S = 24 * 3600.0
_LOCK = re.compile(re.escape(files.MARK) + r".+" + re.escape(locks.SUFFIX) + r"(\.[0-9a-f]{8})?")
_DAMAGED = re.compile(r".+\.ckpt\.damaged\d*")
_CACHE = re.compile(r"[0-9a-f]{64}\.samples")
_CACHE_FOLDER, _KEPT_FOLDER = ".nemo_launcher_cache", ".kept"
_OF_A_JOB = ("_job.json", "_outputs.json", "_hydra.yaml")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that may be deleted."""

    path: str
    """The file or folder."""
    kind: str
    """What it is."""
    bytes: int
    """Its size on the disk, with everything in a folder."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search below a folder."""

    leftovers: list[Leftover]
    """What may be deleted."""
    unreadable: list[str]
    """Folders that could not be read."""


def find(root: Path) -> Found:
    """Return what may be deleted below a folder. Links to other folders are not followed."""
    leftovers: list[Leftover] = []
    unreadable: list[str] = []
    jobs: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=lambda error: unreadable.append(str(error.filename))):
        if any(name.endswith(_OF_A_JOB) for name in names) or os.path.dirname(folder) in jobs:
            jobs.add(folder)  # a job folder, or one inside it
        here = Path(folder)
        for name, kind in _candidates(here, [*subfolders, *names], of_a_job=folder in jobs):
            leftovers.append(Leftover(str(here / name), kind, _size(here / name)))
        listed = {Path(leftover.path).name for leftover in leftovers if Path(leftover.path).parent == here}
        subfolders[:] = [name for name in subfolders if name not in listed]
    return Found(sorted(leftovers, key=lambda leftover: leftover.path), sorted(unreadable))


def _candidates(folder: Path, names: list[str], *, of_a_job: bool) -> Iterator[tuple[str, str]]:
    """Yield name and kind of everything that may be deleted in one folder."""
    ours = [name for name in names if name.startswith(".") or _DAMAGED.fullmatch(name) or _CACHE.fullmatch(name)]
    now = _now(folder) if ours else 0.0
    in_use = any(_LOCK.fullmatch(name) and not _is_free(folder / name, now) for name in names) or _is_held(
        folder.parent
    )
    if of_a_job and not in_use:
        yield from ((name, "superseded checkpoint of a finished training") for name in superseded(folder))
    for name in ours:
        path = folder / name
        if files.owner_of(path) is not None:
            if files.is_abandoned(path, now):
                yield name, "temporary of a job that was killed"
        elif _LOCK.fullmatch(name):
            if _is_free(path, now):
                yield name, "lock of a job that was killed"
        elif _CACHE.fullmatch(name):
            if folder.name == _CACHE_FOLDER and _is_file(path) and _age(path, now) > KEPT_DAYS * _DAY_S:
                yield name, f"data cache not used for {KEPT_DAYS} days"
        elif _DAMAGED.fullmatch(name):
            if of_a_job and not in_use and _is_file(path):
                yield name, "damaged checkpoint that was set aside"
        elif name == _KEPT_FOLDER and of_a_job and not in_use and path.is_dir() and not path.is_symlink():
            yield name, "copies made by an earlier release"


def _is_held(results: Path) -> bool:
    """Return whether a job writes to a folder and therefore holds a lock there."""
    try:
        return any(
            _LOCK.fullmatch(name) and not _is_free(results / name, _now(results)) for name in os.listdir(results)
        )
    except OSError:
        return False


def _is_free(path: Path, now: float) -> bool:
    """Return whether a lock's holder has ended; on another machine, whether the file is untouched for MAX_AGE_S."""
    return _is_file(path) and (locks.is_stale(path) or _age(path, now) > files.MAX_AGE_S)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _age(path: Path, now: float) -> float:
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0


def _now(folder: Path) -> float:
    """Return the file system's time, or 0 for an unwritable folder, so that nothing in it counts as old."""
    try:
        return files.file_system_time(folder)
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        below = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        return sum(item.lstat().st_blocks * 512 for item in (path, *below))
    except OSError:
        return 0


# --- the verb -----------------------------------------------------------------------------------------------------


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the options of `clean` except the folder."""
    verb.add_argument("--delete", action="store_true", help="delete what is listed; without it nothing is touched")
    verb.add_argument("--json", action="store_true", help="print an object with leftovers, bytes and unreadable")


def run(folder: Path, options: argparse.Namespace) -> int:
    """List what may be deleted below a folder and delete it with --delete; return 1 when a deletion failed."""
    found = find(folder)
    left: list[str] = []
    if options.delete:
        for leftover in found.leftovers:
            files.remove(Path(leftover.path))
        left = [leftover.path for leftover in found.leftovers if os.path.lexists(leftover.path)]
    total = sum(leftover.bytes for leftover in found.leftovers)
    if options.json:
        values = {"results_dir": str(folder), "deleted": options.delete, "bytes": total, "not_removed": left}
        values |= {"leftovers": [asdict(leftover) for leftover in found.leftovers], "unreadable": found.unreadable}
        print(json.dumps(values, indent=2))
    else:
        _show(folder, found, total, left, deleted=options.delete)
    return 1 if left else 0


def _show(folder: Path, found: Found, total: int, left: list[str], *, deleted: bool) -> None:
    for leftover in found.leftovers:
        print(f"{leftover.bytes / 1e6:>10,.1f} MB  {_printable(leftover.path)}  ({leftover.kind})")
    count = len(found.leftovers)
    if not count:
        print(f"nothing to clean below {_printable(str(folder))}")
    elif deleted:
        print(f"removed: {count - len(left)} of {count}, {total / 1e6:,.1f} MB in all")
    else:
        print(f"{count} to delete, {total / 1e6:,.1f} MB in all; nothing was deleted: add --delete")
    for path in left:
        print(f"not removed: {_printable(path)}", file=sys.stderr)
    for path in found.unreadable:
        print(f"cannot be read: {_printable(path)}", file=sys.stderr)


def _printable(text: str) -> str:
    """Return a path on one line, with unprintable characters escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
