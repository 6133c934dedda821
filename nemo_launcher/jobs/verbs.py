# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher status`, `logs`, `cancel` and `rerun`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nemo_launcher import places
from nemo_launcher.clusters import CLUSTERS
from nemo_launcher.clusters import record as records
from nemo_launcher.clusters.job import moved_from
from nemo_launcher.clusters.record import JobRecord, refuse_foreign
from nemo_launcher.clusters.state import UNKNOWN, JobStatus
from nemo_launcher.clusters.text import title, visible
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import reading
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.files.locks import folder_lock
from nemo_launcher.jobs import clean
from nemo_launcher.jobs.search import choose, choose_one, later_stages
from nemo_launcher.jobs.status import as_json, status_of, statuses
from nemo_launcher.jobs.table import columns_here, table


def _add_status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("results_dir", nargs="?", metavar="RESULTS_DIR", help=_RESULTS_DIR)
    verb.add_argument(
        "--json",
        action="store_true",
        help="print one object with results_dir, slurm_answers, unreadable and jobs",
    )
    verb.add_argument("--wide", action="store_true", help="show all columns and names in full, however wide")
    verb.set_defaults(run=_status)


def _add_logs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("job", metavar="JOB_OR_FOLDER", help=_JOB)
    verb.add_argument("--follow", action="store_true", help="print new output until the job ends")
    verb.add_argument("--lines", type=_positive, default=20, metavar="N", help="the last N lines (default 20)")
    _add_results_dir(verb)
    verb.set_defaults(run=_logs)


def _add_cancel(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("jobs", nargs="*", metavar="JOB_OR_FOLDER", help=_JOB)
    verb.add_argument("--all", action="store_true", help="cancel every job that waits or runs")
    _add_results_dir(verb)
    verb.set_defaults(run=_cancel)


def _add_rerun(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("job", metavar="FOLDER", help="the job's folder, or its id, name or stage")
    verb.add_argument("--onwards", action="store_true", help="also rerun all later stages of its chain, in order")
    force = "rerun even if the cluster does not answer or the previous stage has failed"
    verb.add_argument("--force", action="store_true", help=force)
    _add_results_dir(verb)
    verb.set_defaults(run=_rerun)


def _add_clean(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("results_dir", nargs="?", metavar="RESULTS_DIR", help=_RESULTS_DIR)
    clean.add_options(verb)
    verb.set_defaults(run=lambda options: clean.run(_results_dir(options.results_dir), options))


_RESULTS_DIR = "the folder to search for jobs (default: base_results_dir of the configuration)"
_JOB = "a job's id, name, stage or folder"


def _add_results_dir(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--results-dir", metavar="DIR", help=_RESULTS_DIR)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _results_dir(given: str | None) -> Path:
    """Return the given folder, or else the launcher's default. Raises UserError when the given one does not exist."""
    if given is not None:
        if not given or not Path(given).is_dir():  # "" is an unset variable, not the current folder
            raise UserError(Problem(given or "''", "no such folder", "name a base_results_dir, or a folder below it"))
        return Path(given).absolute()
    from omegaconf import OmegaConf

    from nemo_launcher.config import resolvers

    resolvers.register()
    path = places.CONF / "config.yaml"
    with reading(path, "correct the file, or name the folder: --results-dir DIR"):
        return Path(str(OmegaConf.create(load_yaml(path)).base_results_dir))


def _status(options: argparse.Namespace) -> int:
    """Show all jobs. Returns 1 when a folder could not be read, because jobs may be missing then."""
    folder = _results_dir(options.results_dir)
    unreadable: list[Path] = []
    known = statuses(records.find(folder, unreadable))
    if options.json:
        facts = {
            "results_dir": str(folder),
            "slurm_answers": not known.silent,
            "unreadable": [str(path) for path in unreadable],
            "jobs": [as_json(status) for status in known.jobs],
        }
        print(json.dumps(facts, indent=2))
    elif known.jobs:
        print(table(known.jobs, folder, None if options.wide else columns_here()))
    else:
        print(f"no jobs below {folder}")
    for name in known.silent:
        print(f"{name} did not answer; states are those in the job folders", file=sys.stderr)
    return _report_unreadable(unreadable)


def _report_unreadable(folders: list[Path]) -> int:
    if not folders:
        return 0
    count = "1 folder" if len(folders) == 1 else f"{len(folders)} folders"
    shown = ", ".join(visible(str(path)) for path in folders[:3])
    print(f"{count} cannot be read: {shown}{', ...' if len(folders) > 3 else ''}", file=sys.stderr)
    return 1


def _logs(options: argparse.Namespace) -> int:
    from nemo_launcher.jobs import logs

    record = _one(options.job, options.results_dir)
    if record.damage:
        raise UserError(Problem(options.job, record.damage, f"its logs are in {record.folder}"))
    if record.job_id is None:
        raise UserError(Problem(options.job, "has not started, so it has no log yet", "check nemo-launcher status"))
    if not (options.follow or any(log.exists() for log in record.logs)):
        remote = CLUSTERS[record.cluster_type].remote_logs(record, options.lines)
        if remote is not None:
            print(remote, end="")
            return 0
        raise UserError(Problem(options.job, "has written no log yet", "add --follow to wait for it"))
    if options.follow:
        logs.follow(record.logs, options.lines, lambda: _may_run(record))
    else:
        logs.show(record.logs, options.lines)
    return 0


def _may_run(record: JobRecord) -> bool:
    """Return whether a job may write more output; it may if its cluster does not answer at the moment."""
    return any(status.is_active or status.may_be_active for status in statuses([record]).jobs)


def _cancel(options: argparse.Namespace) -> int:
    """Cancel jobs. Returns 1 when one could not be cancelled or its cluster did not answer."""
    if bool(options.jobs) == options.all:
        raise UserError(Problem("cancel", "needs either job names or --all", "name the jobs, or use only --all"))
    unreadable: list[Path] = []
    found = records.find(_results_dir(options.results_dir), unreadable)
    chosen = found if options.all else [record for word in options.jobs for record in _named(word, found)]
    known = statuses({(record.record_file, record.job_id): record for record in chosen}.values())
    to_end = [status for status in known.jobs if status.is_active or status.may_be_active]
    if options.all and not to_end:
        print("no job waits or runs")
    for status in known.jobs:
        if not options.all and status not in to_end:
            print(f"{title(status.record)}: not active ({status.state})")
    worked = True
    for kind in sorted(CLUSTERS, key=lambda kind: CLUSTERS[kind].queues):  # clusters without a scheduler first
        own = [status for status in to_end if status.record.cluster_type == kind]
        worked = (not own or CLUSTERS[kind].cancel(own)) and worked
    return max(_report_unreadable(unreadable) if options.all else 0, 0 if worked else 1)


def _named(word: str, known: list[JobRecord]) -> list[JobRecord]:
    """Return all jobs of a folder, or the one job with that id, name or stage."""
    return choose(word, known) if Path(word).is_dir() else [choose_one(word, known)]


def _rerun(options: argparse.Namespace) -> int:
    first = records.read(_one(options.job, options.results_dir).record_file)
    assert first is not None  # it was found a moment ago
    chain = [first, *(later_stages(first) if options.onwards else [])]
    for record in chain:
        refuse_foreign(record)
        if not record.script_file.is_file():
            raise UserError(Problem(str(record.script_file), "no such file", "launch the stage again"))
        _refuse_moved(record)
        if record.cluster_type != first.cluster_type:
            raise UserError(Problem(str(record.folder), f"was started on {record.cluster_type}", "rerun it separately"))
    cluster = CLUSTERS[first.cluster_type]
    with contextlib.ExitStack() as locks:
        if cluster.queues:  # without a scheduler, the running job locks its folder
            for record in chain:
                locks.enter_context(folder_lock(record.folder, "launch"))
        chain = [records.read(record.record_file) or record for record in chain]  # read again under the lock
        _refuse_active(chain, force=options.force)
        predecessor = None if first.before is None else records.read(first.before)
        if predecessor is not None and not predecessor.damage:
            _refuse_failed_predecessor(first, status_of(predecessor), force=options.force)
        for record in chain:  # a script or launcher that checks before it starts must not see the old cancellation
            if record.cancelled:
                records.write(dataclasses.replace(record, cancelled=False))
        now = time.time()
        again = [
            dataclasses.replace(record, submitted=now + number * 1e-3, cancelled=False)
            for number, record in enumerate(chain)
        ]
        return cluster.start(list(map(cluster.for_rerun, again)))


def _refuse_moved(record: JobRecord) -> None:
    """Raise UserError when a job's script and configuration name another folder, where it would then run."""
    old = moved_from(load_yaml(record.config_file), record.folder)
    if old is not None:
        what = f"was moved or copied from {visible(old)}, which its script and configuration name"
        fix = f"launch the stage again with {record.stage}.run.results_dir={record.folder}, where it resumes"
        raise UserError(Problem(str(record.folder), what, fix))


def _refuse_active(chain: list[JobRecord], *, force: bool) -> None:
    """Raise UserError when a job still waits or runs, or when its state is unknown."""
    for status in statuses(chain).jobs:
        folder = str(status.record.folder)
        if status.is_active and not status.may_be_active:
            what = f"{title(status.record)} is {status.state}"
            raise UserError(Problem(folder, what, f"wait for its end, or: nemo-launcher cancel {shlex.quote(folder)}"))
        if status.may_be_active and not force:
            cluster = CLUSTERS[status.record.cluster_type]
            what = f"{cluster.title} did not answer: whether {title(status.record)} still waits or runs is unknown"
            fix = f"try again when {cluster.asks_with} answers, or submit it anyway with --force"
            raise UserError(Problem(folder, what, fix))


def _refuse_failed_predecessor(record: JobRecord, before: JobStatus, *, force: bool) -> None:
    """Raise UserError when a stage would use outputs from an earlier run of a previous stage that has since failed."""
    if force or record.edge == "afterany" or before.is_active or before.state in ("completed", UNKNOWN):
        return
    what = f"the previous stage, {title(before.record)}, is {before.state}; its outputs are from an earlier run"
    folder = shlex.quote(str(before.record.folder))
    fix = f"rerun both: nemo-launcher rerun {folder} --onwards; or rerun this one anyway with --force"
    raise UserError(Problem(str(record.folder), what, fix))


def _one(word: str, results_dir: str | None) -> JobRecord:
    """Return the record of the one job that `word` names."""
    known = [] if Path(word).is_dir() else records.find(_results_dir(results_dir))
    return choose_one(word, known)


Verb = tuple[Callable[[argparse.ArgumentParser], None], str]
"""A function that adds the options of a verb, and the verb's help text."""

VERBS: dict[str, Verb] = {
    "clean": (_add_clean, "list what killed jobs have left behind; delete it with --delete"),
    "status": (_add_status, "show the state of the jobs below a folder"),
    "logs": (_add_logs, "show the end of a job's log"),
    "cancel": (_add_cancel, "cancel queued, running and local jobs"),
    "rerun": (_add_rerun, "run a job's script again; training resumes from its checkpoint"),
}
