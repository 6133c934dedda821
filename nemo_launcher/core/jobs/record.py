"""The record of a started job, `<job>_job.json` in its folder: enough to find, stop and start it again later."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_launcher.core.job import Job, JobFiles, private
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.files import write_json

SUFFIX = "_job.json"
MOST_EARLIER = 20


@dataclass(frozen=True, kw_only=True)
class JobRecord(JobFiles):
    """A job as it was started last.

    job_id: Slurm's, else the process id; None while a local job waits for the stage before it. host, process: where a
    local job runs, or the launcher that it waits for, and when that process began (nemo_launcher.core.jobs.process).
    earlier: Slurm jobs started from the same folder before, which may be in the queue yet. submitted: seconds since
    1970. cancelled: on request.
    """

    cluster_type: str
    progress_file: Path | None
    job_id: str | None = None
    logs: list[Path] = dataclasses.field(default_factory=list)
    submitted: float = dataclasses.field(default_factory=time.time)
    earlier: list[str] = dataclasses.field(default_factory=list)
    host: str | None = None
    process: tuple[int, str] | None = None
    cancelled: bool = False

    @property
    def record_file(self) -> Path:
        """`<job>_job.json`"""
        return record_file(self)


def record_file(job: JobFiles) -> Path:
    """Where the record of a job is."""
    return job.folder / f"{job.name}{SUFFIX}"


def record_of(job: Job, cluster_type: str) -> JobRecord:
    """Return the record of a job that is about to be started."""
    shared = {field.name: getattr(job, field.name) for field in dataclasses.fields(JobFiles)}
    return JobRecord(**shared, cluster_type=cluster_type, progress_file=job.progress_file)


def started(record: JobRecord, job_id: str | None, logs: list[Path], **changes: Any) -> JobRecord:
    """Write and return the record of a job that has been started under `job_id`, or waits for that (None)."""
    new = dataclasses.replace(record, job_id=job_id, logs=logs, cancelled=False, earlier=_earlier(record), **changes)
    write(new)
    return new


def write(record: JobRecord) -> None:
    """Write the record to its folder."""
    values = {name: _plain(value) for name, value in dataclasses.asdict(record).items() if name != "folder"}
    with private():
        write_json(record.record_file, values)


def read(path: Path) -> JobRecord | None:
    """Return the record in a file; None when it is not there or of another version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["logs"] = [Path(log) for log in values["logs"]]
        values["outputs"] = [Path(output) for output in values["outputs"]]
        values["progress_file"] = values["progress_file"] and Path(values["progress_file"])
        values["process"] = values["process"] and tuple(values["process"])
        return JobRecord(folder=path.parent, **values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(results_dir: Path) -> list[JobRecord]:
    """Return the records below a folder, in the order in which the jobs were started."""
    records = []
    for folder, subfolders, files in os.walk(results_dir):
        here = [name for name in files if name.endswith(SUFFIX)]
        if here and "results" in subfolders:  # a job's own, with checkpoints
            subfolders.remove("results")
        records += [read(Path(folder) / name) for name in here]
    return sorted((record for record in records if record is not None), key=lambda record: record.submitted)


def choose(word: str, records: Iterable[JobRecord]) -> list[JobRecord]:
    """Return the records that `word` names: a folder, a job id, a job's name or a stage.

    Raises UserError when there is none.
    """
    records = list(records)
    folder = Path(word).absolute()
    if folder.is_dir():
        here = [record for path in sorted(folder.glob(f"*{SUFFIX}")) if (record := read(path)) is not None]
        if here:
            return here
    # an id is that job alone, whatever else was started from its folder
    named = [single(record, word) for record in records if word in (record.job_id, *record.earlier)]
    found = named or [r for r in records if r.name == word] or [r for r in records if r.stage == word]
    if found:
        return found
    if folder.is_dir():
        raise UserError(Problem(word, "no job was started in this folder", "name the job's own folder"))
    known = {name for record in records for name in (record.job_id, record.name, record.stage) if name}
    raise UserError(Problem(word, "no such job or folder", did_you_mean(word, known) if known else NO_JOBS))


def single(record: JobRecord, job_id: str) -> JobRecord:
    """Return the record as if `job_id` were the one job ever started from its folder."""
    if record.cluster_type != "bcm" or job_id == record.job_id:
        return dataclasses.replace(record, earlier=[])
    logs = [record.log_file(job_id), record.log_file(job_id, "err")]
    return dataclasses.replace(record, job_id=job_id, logs=logs, earlier=[])


NO_JOBS = "there are no jobs; --results-dir names the folder to look in"


def choose_one(word: str, records: Iterable[JobRecord]) -> JobRecord:
    """Return the one record that `word` names. Raises UserError when there is none or more than one."""
    found = choose(word, records)
    if len(found) > 1:
        shown = ", ".join(f"{record.job_id or record.name} ({record.folder})" for record in found)
        raise UserError(Problem(word, f"names {len(found)} jobs", f"name one by its id or folder: {shown}"))
    return found[0]


def _earlier(record: JobRecord) -> list[str]:
    """Slurm jobs that were started from this record's folder up to now."""
    before = read(record.record_file)
    if record.cluster_type != "bcm" or before is None or before.cluster_type != "bcm" or before.job_id is None:
        return []
    return [*before.earlier, before.job_id][-MOST_EARLIER:]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
