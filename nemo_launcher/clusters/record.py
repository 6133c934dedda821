# SPDX-License-Identifier: Apache-2.0
"""The record of a job, `<job>_job.json` in its folder, for finding, cancelling and rerunning it later."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nemo_launcher.clusters.job import Job, JobFiles, private
from nemo_launcher.clusters.kinds import KINDS
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import first_line, load_json

SUFFIX = "_job.json"
MOST_EARLIER = 20
MAX_PROCESS_ID = 2**22
"""The kernel's limit."""
MAX_SECONDS = 2.0**40
CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class JobRecord(JobFiles):
    """A job as it was last started."""

    cluster_type: str
    """The kind of cluster that runs it."""
    progress_file: Path | None
    """The file with a training's progress; None for other stages."""
    job_id: str | None = None
    """The scheduler's id or the process id; None while the job waits for the previous stage or for submission."""
    logs: list[Path] = dataclasses.field(default_factory=list)
    """The log files."""
    submitted: float = dataclasses.field(default_factory=time.time)
    """Time of the submission, in seconds since 1970."""
    earlier: list[str] = dataclasses.field(default_factory=list)
    """Ids of jobs started from this folder before, which may still be in the queue."""
    host: str | None = None
    """The host of a local job, or of the launcher that it waits for."""
    process: tuple[int, str] | None = None
    """Id and start of that process (files.owner.identity)."""
    cancelled: bool = False
    """Whether it was cancelled on request."""
    requeue: bool = False
    """Whether the job script puts the job back into the queue."""
    before: Path | None = None
    """The record of the previous stage in its chain."""
    after: Path | None = None
    """The record of the next stage."""
    edge: str | None = None
    """How it depends on the previous stage: afterok, afterany or singleton."""
    dependency: str | None = None
    """Its dependency on other jobs."""
    slurm_name: str | None = None
    """The job's name in Slurm if it differs from the one in the script."""
    of_cluster: dict[str, str] = dataclasses.field(default_factory=dict)
    """Further values that its cluster needs to find it."""
    damage: str = ""
    """Why the record is unusable, in which case all else is unknown; empty for a valid record."""

    @property
    def record_file(self) -> Path:
        """`<job>_job.json`"""
        return record_file(self)

    @property
    def title(self) -> str:
        """The job's name in messages."""
        return f"{self.stage} {self.name}" + (f" (job {self.job_id})" if self.job_id is not None else "")


def record_file(job: JobFiles) -> Path:
    """Return the path of a job's record."""
    return job.folder / f"{job.name}{SUFFIX}"


def record_of(
    job: Job,
    cluster_type: str,
    *,
    before: Path | None = None,
    after: Path | None = None,
    edge: str | None = None,
    dependency: str | None = None,
) -> JobRecord:
    """Return the record of a job that is about to be started."""
    return JobRecord(
        stage=job.stage,
        name=job.name,
        folder=job.folder,
        outputs=job.outputs,
        cluster_type=cluster_type,
        progress_file=job.progress_file,
        before=before,
        after=after,
        edge=edge,
        dependency=dependency,
    )


def started(record: JobRecord, job_id: str | None, logs: list[Path], **changes: Any) -> JobRecord:
    """Write and return the record of a job that was started as `job_id`, or is yet to be started (None)."""
    new = dataclasses.replace(
        record, job_id=job_id, logs=logs, cancelled=False, earlier=_earlier(record, job_id), **changes
    )
    write(new)
    return new


def write(record: JobRecord) -> None:
    """Write the record to its folder."""
    values = {name: _plain(value) for name, value in dataclasses.asdict(record).items()}
    for name in ("folder", "damage", *([] if record.of_cluster else ["of_cluster"])):
        del values[name]
    with private():
        write_json(record.record_file, values)


def read(path: Path) -> JobRecord | None:
    """Return the record in a file; None when the file is absent. An unusable record has the reason in `damage`.

    The file may come from anyone: types and bounds of all values are checked, and log files lie in the record's folder.
    """
    if not os.path.lexists(path):
        return None
    try:
        return _checked(path, load_json(path))
    except UserError as error:
        return damaged(path, error.problems[0].what)
    except OSError as error:
        return damaged(path, str(error.strerror or first_line(error)).lower())


def find(results_dir: Path, unreadable: list[Path] | None = None) -> list[JobRecord]:
    """Return the records below a folder in the order of submission.

    unreadable: receives the folders that cannot be read.
    """
    records = []

    def cannot_be_read(error: OSError) -> None:
        if unreadable is not None and not isinstance(error, FileNotFoundError):
            unreadable.append(Path(str(error.filename)))

    for folder, subfolders, files in os.walk(results_dir, onerror=cannot_be_read):
        here = sorted(name for name in files if name.endswith(SUFFIX))
        if here and "results" in subfolders:  # the job's results, with checkpoints
            subfolders.remove("results")
        records += [record for name in here if (record := read(Path(folder) / name)) is not None]
    return sorted(records, key=lambda record: record.submitted)


def damaged(path: Path, what: str) -> JobRecord:
    """Return a placeholder for an unusable record."""
    name = path.name.removesuffix(SUFFIX)
    return JobRecord(
        stage="?", name=name, folder=path.parent, outputs=[], cluster_type="?", progress_file=None, submitted=0.0,
        damage=f"{path.name} {what}",
    )  # fmt: skip


def refuse_foreign(record: JobRecord) -> None:
    """Raise UserError for an unusable record and for one whose files belong to another user."""
    if record.damage:
        fix = "launch the stage again, which rewrites the record"
        raise UserError(Problem(str(record.folder), record.damage, fix))
    for path in (record.record_file, record.script_file):
        if os.path.lexists(path) and (os.path.islink(path) or path.stat().st_uid != os.getuid()):
            what = "is a link or belongs to another user, so the job is neither run nor ended"
            raise UserError(Problem(str(path), what, "launch the stage into a folder of your own"))


# --- reading ------------------------------------------------------------------------------------------------------


def _checked(path: Path, values: object) -> JobRecord:
    """Return the record with these values. Raises UserError for a value of the wrong type or outside its bounds."""
    source = str(path)
    if not isinstance(values, dict):
        raise UserError(Problem(source, "is not a job record"))
    known: dict[str, Any] = {"progress_file": None}
    for name, (test, convert) in _FIELDS.items():
        if name not in values and name in _REQUIRED:
            raise UserError(Problem(source, f"is not a job record: it has no {name}"))
        value = values.get(name)
        if value is None and name not in _REQUIRED:
            continue  # keep the default
        if not test(value):
            raise UserError(Problem(source, f"is not a job record: its {name} is wrong"))
        known[name] = convert(value)
    if path.name != f"{known['name']}{SUFFIX}":
        raise UserError(Problem(source, "is the record of another job"))
    # logs are in the job's folder, which may have moved
    known["logs"] = [path.parent / log.name for log in known.get("logs", [])]
    cluster = KINDS[known["cluster_type"]]
    ids = {"job_id": [known["job_id"]] if "job_id" in known else [], "earlier": known.get("earlier", [])}
    for name in (name for name, given in ids.items() if not all(map(cluster.is_job_id, given))):
        raise UserError(Problem(source, f"is not a job record: its {name} is wrong"))
    if not all(log.name.startswith("log-") for log in known["logs"]):
        raise UserError(Problem(source, "is not a job record: its logs are wrong"))
    return JobRecord(folder=path.parent, **known)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= 4096 and not CONTROL.search(value)


def _is_name(value: object) -> bool:
    return _is_text(value) and "/" not in value and len(value.encode(errors="replace")) <= 255


def _is_list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and len(value) <= 1000 and all(map(of, value))


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and len(value) <= 20 and all(map(_is_text, (*value, *value.values())))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _is_process(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 2):
        return False
    number, birth = value
    return type(number) is int and 1 < number <= MAX_PROCESS_ID and _is_text(birth)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _paths(values: list[str]) -> list[Path]:
    return [Path(value) for value in values]


_FIELDS: dict[str, tuple[Callable[[object], bool], Callable[[Any], Any]]] = {
    "stage": (_is_name, str),
    "name": (_is_name, str),
    "cluster_type": (lambda value: isinstance(value, str) and value in KINDS, str),
    "outputs": (_is_list(_is_text), _paths),
    "progress_file": (_is_text, Path),
    "job_id": (_is_name, str),
    "logs": (_is_list(_is_text), _paths),
    "submitted": (_is_time, float),
    "earlier": (_is_list(_is_name), list),
    "host": (_is_text, str),
    "process": (_is_process, tuple),
    "cancelled": (_is_flag, bool),
    "requeue": (_is_flag, bool),
    "before": (_is_text, Path),
    "after": (_is_text, Path),
    "edge": (lambda value: value in ("afterok", "afterany", "singleton"), str),
    "dependency": (_is_text, str),
    "slurm_name": (_is_text, str),
    "of_cluster": (_is_texts, dict),
}
_REQUIRED = ("stage", "name", "cluster_type", "outputs", "submitted")


def _earlier(record: JobRecord, job_id: str | None) -> list[str]:
    """Return the ids of a scheduler's earlier jobs from this record's folder."""
    before = read(record.record_file)
    if not KINDS[record.cluster_type].queues or before is None or before.cluster_type != record.cluster_type:
        return []
    ids = [*before.earlier, *([before.job_id] if before.job_id is not None else [])]
    return [earlier for earlier in dict.fromkeys(ids) if earlier != job_id][-MOST_EARLIER:]


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def usable(records: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the records that are not damaged."""
    return [record for record in records if not record.damage]
