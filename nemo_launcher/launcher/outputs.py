# SPDX-License-Identifier: Apache-2.0
"""Check outputs: at launch for the whole chain of stages, and in each script before it does anything.

No stage may write a file that it or an earlier stage reads, that another stage or run writes, or that exists and was
not made by this job (launcher.claims).
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
"""The free space below which a disk counts as full."""


def check_outputs(stages: Sequence[Stage], *, at_launch: bool = True) -> list[Problem]:
    """Return what is wrong with the outputs of a chain of stages, as seen from this machine.

    at_launch: the folder's record and configuration are those of an earlier start and describe its outputs.
    """
    problems = [problem for i in range(len(stages)) for problem in _collisions(stages, i)]
    for stage in stages:
        ours = set(claims(stage)) | made_before(stage, at_launch=at_launch)
        reported = {problem.where for problem in problems}
        for output in stage.writes():
            problem = _place_problem(output) if output.key not in reported else None
            if problem is None and at_launch and output.key not in reported:
                problem = _full_problem(output)
            if problem is None and output.key not in reported and not _is_ours(stage, output, ours):
                problem = _not_ours(stage, output)
            if problem is not None:
                reported.add(output.key)
                problems.append(problem)
    return problems


def check_runs(runs: Sequence[tuple[str, Sequence[Stage]]]) -> list[Problem]:
    """Return the files that several runs of a sweep would write. runs: (label, stages); runs may share a job."""
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
                    problems[Problem(output.key, what, f"vary {output.key} too, or leave it out")] = None
    return list({problem.where: problem for problem in problems}.values())


@contextlib.contextmanager
def held_outputs(section: dict[str, object], schema: type, *, leader: bool) -> Iterator[None]:
    """Check, record and lock the outputs of a running script inside the context. section: its configuration.

    leader: whether this process locks and writes, as one of several does. Raises UserError for
    problems of the outputs, and when another job holds their locks.
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
    """Return folder and purpose of each lock of a job, one per output, in the same order for all jobs."""
    locks = set()
    for output in stage.writes():
        if output.kind == "folder":
            locks.add((absolute(output.path), "run"))
        elif output.kind != "cache":
            locks.add(place_of_file(output.path))
    return sorted(locks)


# --- checks -------------------------------------------------------------------------------------------------------


def _collisions(stages: Sequence[Stage], i: int) -> Iterator[Problem]:
    """Yield a problem for each output of stage `i` that it or an earlier stage reads, or that is written twice."""
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
                what = f"{output.path} is also written as {twin.key}" if twin.key != output.key else _twice(output)
                yield Problem(output.key, what, _elsewhere(output))
        written.append(output)


def _read_as(output: Output, key: str, path: Path) -> str | None:
    """Return what is wrong with an output that is an input or is inside an input folder; else None."""
    if same_file(output.path, path):
        return f"{output.path} is read as {key}, and would be overwritten"
    if path.is_dir() and is_below(output.path, path):
        return f"{output.path} is inside {path}, which is read as {key}"
    return None


def _twice(output: Output) -> str:
    return f"{output.path} would be written twice, since files beside it get that name"


def _elsewhere(output: Output) -> str:
    if output.kind == "copy":
        return f"choose another name: {output.key}=my_adapter"
    suffix = ".nemo" if output.key.endswith("nemo_path") else output.path.suffix  # not the suffix of the copy beside it
    kind = "folder" if output.kind in ("folder", "cache") else f"file{suffix}"
    return f"choose another path: {output.key}=/another/{kind}"


def _place_problem(output: Output) -> Problem | None:
    """Return the problem of an output path that cannot be written; None if there is none."""
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
        what = "a broken link" if not folder.exists() else "a file, not a folder"
        return Problem(output.key, f"{folder} is {what}", _elsewhere(output))
    if output.kind == "cache":  # training works without a cache
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return Problem(output.key, f"cannot write to {folder}", _elsewhere(output))
    return None


def _full_problem(output: Output) -> Problem | None:
    """Return the problem of a full disk at launch; a running job names the file that did not fit instead."""
    if output.kind == "cache":
        return None
    path = absolute(output.path)
    folder = existing_folder(path if output.kind == "folder" else path.parent)
    disk = os.statvfs(folder)
    fix = f"free some space there; or {_elsewhere(output)}"
    if not disk.f_blocks:  # /proc, or a file system of unknown size
        try:
            file_system_time(folder)
        except OSError as error:
            return Problem(output.key, f"no file can be created in {folder}: {error.strerror}", _elsewhere(output))
        return None
    if disk.f_bavail * disk.f_frsize < LEAST_FREE_BYTES:
        return Problem(output.key, f"the disk of {folder} is full", fix)
    if disk.f_files and not disk.f_favail:
        return Problem(output.key, f"the disk of {folder} has no free inodes for more files", fix)
    return None


def _is_ours(stage: Stage, output: Output, ours: set[Path]) -> bool:
    """Return whether an output is absent, made by this job, or the same base model converted by another job."""
    path = absolute(output.path)
    if output.kind in ("cache", "data") or not path.exists():  # foreign data files are renamed, not overwritten
        return True
    if output.kind == "folder":
        return is_below(path, stage.folder) or path in ours or not _has_training(path)
    if output.kind not in ("adapter", "base"):
        return path in ours
    config = _config(path)
    if path in ours:  # even if recorded, a model of the other kind is not this job's
        is_base = "tokenizer" in config and not is_adapter(config)
        return not config or ("converted_from" in config if output.kind == "base" else not is_base)
    source = config.get("converted_from")
    return isinstance(source, dict) and isinstance(stage, Conversion) and source.get("file") == stage.source_title


def _has_training(folder: Path) -> bool:
    """Return whether a folder or a direct subfolder has files of a training; not deeper, as it may be a whole disk."""
    names = ("*.ckpt", SUMMARY_NAME, PROGRESS_NAME)
    return any(any(folder.glob(f"{below}{name}")) for name in names for below in ("", "*/"))


def _not_ours(stage: Stage, output: Output) -> Problem:
    path = absolute(output.path)
    if output.kind == "folder":
        what = f"{path} has the results of another training"
        return Problem(output.key, what, _elsewhere(output))
    what = f"{path} already exists, and this job did not make it"
    return Problem(output.key, what, f"{_elsewhere(output)}; or move that file away")


def _config(path: Path) -> dict[str, object]:
    """Return the configuration of an archive; empty if it is damaged."""
    try:
        return read_config(path)
    except (UserError, OSError):
        return {}
