# SPDX-License-Identifier: Apache-2.0
"""Submit a chain of jobs to Slurm one by one, without losing track of any job at an interruption."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from pathlib import Path

from nemo_launcher.clusters import job as job_folder
from nemo_launcher.clusters.record import JobRecord, read, started
from nemo_launcher.clusters.slurm import commands as slurm
from nemo_launcher.clusters.slurm import queue as slurm_jobs
from nemo_launcher.clusters.slurm.states import logs_of, state_of
from nemo_launcher.clusters.state import ENDED
from nemo_launcher.clusters.submitting import SubmissionError, exit_status_aside, mark_not_submitted, signals_deferred

_HEADER = "#SBATCH --dependency="
_IDS = re.compile(r"(?<=:)\d+")


def submit_chain(records: list[JobRecord]) -> int:
    """Submit jobs in order, each depending on its previous stage if that is active; return the exit status."""
    submitted: dict[Path, str] = {}
    try:
        for number, record in enumerate(records):
            before = _id_before(record, submitted)
            try:
                with signals_deferred():
                    job_id = submit(record, before)
            except SubmissionError as error:
                _report_refusal(error, record, list(submitted.values()), records[number + 1 :])
                return 1
            behind = f", after job {before}" if before is not None and record.before not in submitted else ""
            print(f"{record.stage}: submitted as job {job_id}{behind}, script {record.script_file}", flush=True)
            submitted[record.record_file] = job_id
    finally:
        mark_not_submitted([record for record in records if record.record_file not in submitted])
    return 0


def submit(record: JobRecord, before: str | None) -> str:
    """Submit a job's script and record it; return its id. Raises SubmissionError and leaves the folder unchanged.

    before: the job id of the previous stage if that is active.
    """
    options, variables = _options(record, before)
    command = ["sbatch", "--parsable", *options, str(record.script_file)]
    with exit_status_aside(record):
        answer = slurm.order(command, variables=variables)
        return _recorded(record, answer, shlex.join([*(f"{n}={value}" for n, value in variables.items()), *command]))


def _recorded(record: JobRecord, answer: slurm.Answer | None, shown: str) -> str:
    """Record sbatch's answer; return the job's id. Raises SubmissionError when it refused or did not answer."""
    output = "" if answer is None else (answer.stdout or answer.stderr).strip()
    job_folder.record(record, f"{shown}: {output or 'no answer'}")
    if answer is None:
        what = f"sbatch did not answer within {slurm.ORDER_TIMEOUT_S:.0f} s"
        raise SubmissionError(f"{what}; check with squeue --me whether the job is queued anyway")
    job_id = answer.stdout.strip().split(";")[0]
    if answer.returncode != 0 or not re.fullmatch(r"\d+", job_id, re.ASCII):
        raise SubmissionError((answer.stderr or answer.stdout).strip() or "sbatch gave no job id")
    started(record, job_id, logs_of(record, job_id), host=None, process=None)
    return job_id


def _options(record: JobRecord, before: str | None) -> tuple[list[str], dict[str, str]]:
    """Return sbatch's options and variables for the dependencies of a job.

    Variables override the script, and options override variables. A singleton's name is given by a variable if its
    dependency is in the script.
    """
    own = [record.dependency] if record.dependency else []
    if record.edge == "singleton":
        after = ["singleton", *(part for part in own if part != "singleton")]
        return [f"--job-name={record.slurm_name}", f"--dependency={','.join(after)}"], {}
    variables = {"SBATCH_JOB_NAME": record.slurm_name} if record.slurm_name is not None else {}
    if before is None:
        return ([] if _header_dependency(record) == record.dependency else [f"--dependency={','.join(own)}"]), variables
    after = [f"{record.edge or 'afterok'}:{before}", *own]
    return [f"--dependency={','.join(after)}"], variables


def _header_dependency(record: JobRecord) -> str | None:
    """Return the dependency in a job's script; sbatch's options override it."""
    for line in record.script_file.read_text(encoding="utf-8").splitlines():
        if line.startswith(_HEADER):
            return "".join(shlex.split(line.removeprefix(_HEADER)))
        if line and not line.startswith("#"):
            break
    return None


def waiting_for(record: JobRecord) -> JobRecord:
    """Return the record of a job to be rerun without dependencies on jobs that have left Slurm's queue.

    Slurm refuses dependencies on jobs that it no longer knows.
    """
    if record.dependency is None:
        return record
    parts = re.split("[,?]", record.dependency)
    ids = [job_id for part in parts for job_id in _IDS.findall(part)]
    answers = slurm_jobs.ask(ids) if ids else slurm_jobs.SlurmStates()
    if answers.silent:
        return record
    gone = {job_id for job_id in ids if job_id not in answers.states or answers.states[job_id].state in ENDED}
    kept = [part for part in (_without(part, gone) for part in parts) if part]
    if gone:
        shown = ", ".join(sorted(gone))
        print(f"{record.stage}: no longer waits for job {shown}, which has left Slurm's queue", flush=True)
    separator = "?" if "?" in record.dependency else ","
    return dataclasses.replace(record, dependency=separator.join(kept) or None)


def _without(part: str, gone: set[str]) -> str:
    """Return a dependency, such as afterok:12:13+5, without the jobs in `gone`; empty if none is left."""
    kind, *jobs = part.split(":")
    kept = [job for job in jobs if not gone.intersection(_IDS.findall(f":{job}"))]
    return ":".join([kind, *kept]) if kept or not jobs else ""


def _id_before(record: JobRecord, submitted: dict[Path, str]) -> str | None:
    """Return the job id of the previous stage if it was just submitted or still waits or runs."""
    if record.before is None or record.before in submitted:
        return submitted.get(record.before) if record.before is not None else None
    predecessor = read(record.before)
    if predecessor is None or predecessor.damage or predecessor.cluster_type != record.cluster_type:
        return None
    status = state_of(predecessor)
    return status.record.job_id if status.is_active else None


def _report_refusal(error: SubmissionError, record: JobRecord, queued: list[str], rest: list[JobRecord]) -> None:
    print(f"{record.stage}: not submitted: {error}", file=sys.stderr)
    if "dependency" in str(error).lower() and record.dependency:
        fix = f"leave out the job that Slurm does not know: {record.stage}.run.dependency is {record.dependency}"
        print(fix, file=sys.stderr)
    if rest:
        print(f"not submitted either: {', '.join(later.stage for later in rest)}", file=sys.stderr)
    if queued:
        what = f"already queued: job {', '.join(queued)}; to remove it: scancel {' '.join(queued)}"
        print(what, file=sys.stderr)
    folder = shlex.quote(str(record.folder))
    print(f"to continue: run the same command again, or nemo-launcher rerun {folder} --onwards", file=sys.stderr)
