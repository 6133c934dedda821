# SPDX-License-Identifier: Apache-2.0
"""Submit a chain of jobs to Kubernetes as one Job, without losing track of it at any interruption."""

from __future__ import annotations

import contextlib
import shlex
import sys

from nemo_launcher.clusters import job as job_folder
from nemo_launcher.clusters.kubernetes import kubectl
from nemo_launcher.clusters.kubernetes.manifest import (
    chain_file,
    chained,
    digest,
    load,
    manifest_file,
    nodes_of,
    object_name_of,
    text_of,
)
from nemo_launcher.clusters.kubernetes.options import Object
from nemo_launcher.clusters.kubernetes.states import namespace_of, states
from nemo_launcher.clusters.record import JobRecord, read, started
from nemo_launcher.clusters.submitting import SubmissionError, exit_status_aside, mark_not_submitted, signals_deferred
from nemo_launcher.files.atomic import write_text


def submit_chain(records: list[JobRecord]) -> int:
    """Submit jobs as the stages of one Job, in order; return the exit status."""
    submitted = False
    try:
        with signals_deferred():
            name = _submit(records)
        submitted = True
    except SubmissionError as error:
        first, *rest = records
        print(f"{first.stage}: not submitted: {error}", file=sys.stderr)
        if rest:
            print(f"not submitted either: {', '.join(later.stage for later in rest)}", file=sys.stderr)
        again = f"nemo-launcher rerun {shlex.quote(str(first.folder))}{' --onwards' if rest else ''}"
        print(f"to continue: run the same command again, or {again}", file=sys.stderr)
        return 1
    finally:
        if not submitted:
            mark_not_submitted(records)
    for number, record in enumerate(records):
        behind = f", after {records[number - 1].stage}" if number else ""
        print(f"{record.stage}: submitted as job {name}{behind}, script {record.script_file}", flush=True)
    return 0


def _submit(records: list[JobRecord]) -> str:
    """Submit and record jobs; return the Job's name. Raises SubmissionError and leaves the folders unchanged."""
    first = records[0]
    _refuse_active_predecessor(first)
    goes_on = [record.edge == "afterany" for record in records[1:]]
    manifest = chained(records, [load(record) for record in records], goes_on)
    name, namespace = object_name_of(manifest), namespace_of(first)
    file = manifest_file(first)
    if len(records) > 1:
        file = chain_file(first)
        with job_folder.private():
            write_text(file, text_of(manifest))
    with contextlib.ExitStack() as aside:
        for record in records:
            aside.enter_context(exit_status_aside(record))
        in_the_way = kubectl.in_the_way(namespace, name)
        if in_the_way:
            raise SubmissionError(in_the_way)
        # an earlier Job from this folder has ended and has the same name
        _run_and_log(first, namespace, "delete", f"job/{name}", "--ignore-not-found")
        _run_and_log(first, namespace, "apply", f"--filename={file}")
        for record in records:
            logs = [record.log_file(log) for log in log_ids(record, manifest)]
            started(record, name, logs, host=None, process=None)
    return name


def log_ids(record: JobRecord, manifest: Object) -> list[str]:
    """Return the names that replace the job id in log files, one per pod."""
    own = digest(record)
    return [own, *(f"{own}-{index}" for index in range(1, min(nodes_of(manifest), 1000)))]


def _run_and_log(record: JobRecord, namespace: str, *arguments: str) -> None:
    answer = kubectl.order(namespace, *arguments)
    refusal = kubectl.refusal(answer)
    output = refusal or ("" if answer is None else "; ".join(answer.stdout.split("\n")).strip("; "))
    shown = shlex.join(["kubectl", f"--namespace={namespace}", *arguments])
    job_folder.record(record, f"{shown}: {output or 'done'}")
    if refusal:
        raise SubmissionError(refusal)


def _refuse_active_predecessor(record: JobRecord) -> None:
    """Raise SubmissionError when a stage would have to wait for another Job, which Kubernetes cannot do."""
    before = None if record.before is None else read(record.before)
    if before is None or before.damage or before.cluster_type != record.cluster_type:
        return
    status = states([before]).found[0][-1]
    if status.is_active:
        what = f"the previous stage, {before.title}, is {status.state}, and a Kubernetes Job cannot wait for another"
        raise SubmissionError(f"{what}; launch again when it has ended, or launch both stages together")
