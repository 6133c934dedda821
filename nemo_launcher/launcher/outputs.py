# SPDX-License-Identifier: Apache-2.0
"""The one check of what is written: at launch for the whole chain, and in each script before anything runs.

No stage may write what it or an earlier stage reads, what another stage or run writes, or a file that this job did not
make (launcher.claims).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_launcher.adapters import sections
from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.checkpoint.outline import is_adapter
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import file_system_time
from nemo_launcher.files.locks import folder_lock, place_of_file
from nemo_launcher.files.paths import absolute, is_below, same_file, spelt_once
from nemo_launcher.launcher.checks.folder import existing_folder
from nemo_launcher.launcher.claims import claim, claims, claims_file, made_before, withdraw
from nemo_launcher.launcher.stage import Output, Stage
from nemo_launcher.launcher.stages import STAGES, Conversion
from nemo_launcher.runtime.progress_file import PROGRESS_NAME, SUMMARY_NAME

LEAST_FREE_BYTES = 1 << 16
"""A disk with less takes no log, let alone a model."""


def check_outputs(stages: Sequence[Stage], *, at_launch: bool = True) -> list[Problem]:
    """Return what is wrong with the outputs of a chain of stages, as this machine sees them.

    at_launch: the folder's record and configuration are those of an earlier start, and tell what that has made.
    """
    problems = [problem for i in range(len(stages)) for problem in _collisions(stages, i)]
    for stage in stages:
        ours = set(claims(stage)) | made_before(stage, at_launch=at_launch)
        told = {problem.where for problem in problems}
        for output in stage.writes():
            problem = _place_problem(output) if output.key not in told else None
            if problem is None and at_launch and output.key not in told:
                problem = _full_problem(output)
            if problem is None and output.key not in told and not _is_ours(stage, output, ours):
                problem = _not_ours(stage, output)
            if problem is not None:
                told.add(output.key)
                problems.append(problem)
    return problems


def check_runs(runs: Sequence[tuple[str, Sequence[Stage]]]) -> list[Problem]:
    """Return which files several runs of a sweep would write; (label, stages) of each. One job may be part of many."""
    problems: dict[Problem, None] = {}
    first: dict[str, tuple[Stage, str]] = {}
    for label, stages in runs:
        for stage in stages:
            for output in stage.writes():
                if output.kind == "cache":
                    continue
                other, other_label = first.setdefault(spelt_once(output.path), (stage, label))
                if (other.folder, other.name) != (stage.folder, stage.name):
                    what = f"{output.path} would be written by several runs of this sweep ({other_label}; {label})"
                    problems[Problem(output.key, what, f"vary {output.key} with the rest, or leave it out")] = None
    return list({problem.where: problem for problem in problems}.values())


@contextlib.contextmanager
def held_outputs(section: dict[str, object], schema: type, *, leader: bool) -> Iterator[None]:
    """Check, enter and lock the outputs of a running script; `section` is its configuration.

    leader: of several processes one locks and writes. Raises UserError: as check_outputs, or another job writes them.
    """
    name = next(name for name, kind in sections.STAGES.items() if kind is schema)
    stage = STAGES[name](section, "", "")
    with contextlib.ExitStack() as held:
        if leader:
            for folder, purpose in _locks(stage):
                held.enter_context(folder_lock(folder, purpose))
        problems = check_outputs([stage], at_launch=False)
        if problems:
            raise UserError(problems)
        begun = claims_file(stage).exists()
        if leader:
            claim(stage, stage.writes())
        try:
            yield
        finally:
            if leader:
                withdraw(stage, keep_record=begun)


def _locks(stage: Stage) -> list[tuple[Path, str]]:
    """Folders and purposes of the locks of a job: one for each file or folder, in an order that is the same for all."""
    locks = set()
    for output in stage.writes():
        if output.kind == "folder":
            locks.add((absolute(output.path), "run"))
        elif output.kind != "cache":
            locks.add(place_of_file(output.path))
    return sorted(locks)


# --- checks -------------------------------------------------------------------------------------------------------


def _collisions(stages: Sequence[Stage], i: int) -> Iterator[Problem]:
    """Outputs of stage `i` that it or an earlier stage reads, or that it writes twice, or an earlier one writes."""
    stage = stages[i]
    written: list[Output] = []
    for output in stage.writes():
        if output.kind == "cache":
            continue
        for other in stages[: i + 1]:
            what = next(filter(None, (_read_as(output, key, path) for key, path in other.reads())), None)
            if what is not None:
                yield Problem(output.key, what, _elsewhere(output))
                break
        else:
            earlier = [*(other for stage in stages[:i] for other in stage.writes()), *written]
            twin = next(
                (other for other in earlier if other.kind != "cache" and same_file(output.path, other.path)), None
            )
            if twin is not None:
                what = f"{output.path} is written as {twin.key} too" if twin.key != output.key else _twice(output)
                yield Problem(output.key, what, _elsewhere(output))
        written.append(output)


def _read_as(output: Output, key: str, path: Path) -> str | None:
    """Return what is wrong with an output that is an input, or lies in a folder that is one."""
    if same_file(output.path, path):
        return f"{output.path} is read as {key}, and would be overwritten"
    if path.is_dir() and is_below(output.path, path):
        return f"{output.path} lies in {path}, which is read as {key}"
    return None


def _twice(output: Output) -> str:
    return f"{output.path} would be written twice: files beside it get that name"


def _elsewhere(output: Output) -> str:
    if output.kind == "copy":
        return f"choose another name: {output.key}=my_adapter"
    suffix = ".nemo" if output.key.endswith("nemo_path") else output.path.suffix  # not that of the copy beside it
    kind = "folder" if output.kind in ("folder", "cache") else f"file{suffix}"
    return f"give it another path: {output.key}=/another/{kind}"


def _place_problem(output: Output) -> Problem | None:
    """Return why nothing can be written to a path."""
    path, is_folder = absolute(output.path), output.kind in ("folder", "cache")
    if os.path.lexists(path) and not is_folder:
        if path.is_dir():
            return Problem(output.key, f"{path} is a folder, not a file", _elsewhere(output))
        if path.exists() and not path.is_file():
            return Problem(output.key, f"{path} is a device or pipe, not a file", _elsewhere(output))
        if path.exists() and not path.stat().st_mode & 0o222:
            return Problem(output.key, f"{path} is write-protected", f"chmod u+w {path}; or {_elsewhere(output)}")
    folder = path if is_folder else path.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        what = "a link that leads nowhere" if not folder.exists() else "a file, not a folder"
        return Problem(output.key, f"{folder} is {what}", _elsewhere(output))
    if output.kind == "cache":  # training goes on without one
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return Problem(output.key, f"cannot write to {folder}", _elsewhere(output))
    return None


def _full_problem(output: Output) -> Problem | None:
    """Return what to tell of a disk without room; in a job the file that did not fit is named instead."""
    if output.kind == "cache":
        return None
    path = absolute(output.path)
    folder = existing_folder(path if output.kind == "folder" else path.parent)
    disk = os.statvfs(folder)
    fix = f"make room there; or {_elsewhere(output)}"
    if not disk.f_blocks:  # /proc, or a file system that does not tell its size
        try:
            file_system_time(folder)
        except OSError as error:
            return Problem(output.key, f"no file can be made in {folder}: {error.strerror}", _elsewhere(output))
        return None
    if disk.f_bavail * disk.f_frsize < LEAST_FREE_BYTES:
        return Problem(output.key, f"the disk of {folder} is full", fix)
    if disk.f_files and not disk.f_favail:
        return Problem(output.key, f"the disk of {folder} takes no more files (no free inodes)", fix)
    return None


def _is_ours(stage: Stage, output: Output, ours: set[Path]) -> bool:
    """Whether an output is absent, or made by this job, or the same base converted by another."""
    path = absolute(output.path)
    if output.kind in ("cache", "data") or not path.exists():  # foreign data files are kept under another name
        return True
    if output.kind == "folder":
        return is_below(path, stage.folder) or path in ours or not _holds_training(path)
    if output.kind not in ("adapter", "base"):
        return path in ours
    config = _config(path)
    if path in ours:  # whatever the record says: a model of the other kind is somebody's
        is_base = "tokenizer" in config and not is_adapter(config)
        return not config or ("converted_from" in config if output.kind == "base" else not is_base)
    source = config.get("converted_from")
    return isinstance(source, dict) and isinstance(stage, Conversion) and source.get("file") == stage.source.name


def _holds_training(folder: Path) -> bool:
    """Whether a folder, or one in it, holds what a training writes; no deeper, for it may be / or a disk's."""
    names = ("*.ckpt", SUMMARY_NAME, PROGRESS_NAME)
    return any(any(folder.glob(f"{below}{name}")) for name in names for below in ("", "*/"))


def _not_ours(stage: Stage, output: Output) -> Problem:
    path = absolute(output.path)
    if output.kind == "folder":
        what = f"{path} holds the results of another training"
        return Problem(output.key, what, _elsewhere(output))
    what = f"{path} is there already, and this job did not make it"
    return Problem(output.key, what, f"{_elsewhere(output)}; or move that file away")


def _config(path: Path) -> dict[str, object]:
    """The configuration of an archive; empty where it is damaged."""
    try:
        return read_config(path)
    except (UserError, OSError):
        return {}
