"""`nemo-launcher status`, `logs`, `cancel` and `rerun`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from nemo_launcher.core.jobs import record as records
from nemo_launcher.core.jobs import slurm
from nemo_launcher.core.jobs.process import HOST, end_group
from nemo_launcher.core.jobs.record import JobRecord
from nemo_launcher.core.jobs.status import as_json, statuses, table
from nemo_launcher.errors import Problem, UserError

GRACE_S = 60.0
"""How long a local job may take to save and end after `cancel`, before it is killed."""


def _add_status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("results_dir", nargs="?", metavar="RESULTS_DIR", help=_RESULTS_DIR)
    verb.add_argument("--json", action="store_true", help="one object with results_dir and jobs, all facts of each")
    verb.set_defaults(run=_status)


def _add_logs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("job", metavar="JOB_OR_FOLDER", help=_JOB)
    verb.add_argument("--follow", action="store_true", help="go on until the job ends")
    verb.add_argument("--lines", type=_positive, default=20, metavar="N", help="the last N lines (default 20)")
    _add_results_dir(verb)
    verb.set_defaults(run=_logs)


def _add_cancel(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("jobs", nargs="*", metavar="JOB_OR_FOLDER", help=_JOB)
    verb.add_argument("--all", action="store_true", help="every job that waits or runs")
    _add_results_dir(verb)
    verb.set_defaults(run=_cancel)


def _add_rerun(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("job", metavar="FOLDER", help="the job's folder, or its id, name or stage")
    _add_results_dir(verb)
    verb.set_defaults(run=_rerun)


_RESULTS_DIR = "where jobs are looked for (default: base_results_dir of the configuration)"
_JOB = "a job's id, name, stage or folder"


def _add_results_dir(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--results-dir", metavar="DIR", help=_RESULTS_DIR)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _results_dir(given: str | None) -> Path:
    """The folder that was given, else where launch would put jobs. Raises UserError when a given one is not there."""
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(Problem(given, "no such folder", "name a base_results_dir, or a folder below it"))
        return Path(given).absolute()
    from omegaconf import OmegaConf

    from nemo_launcher.core import resolvers

    resolvers.register()
    return Path(OmegaConf.load(resolvers.REPOSITORY / "conf/config.yaml").base_results_dir)


def _status(options: argparse.Namespace) -> int:
    folder = _results_dir(options.results_dir)
    found = statuses(records.find(folder))
    if options.json:
        print(json.dumps({"results_dir": str(folder), "jobs": [as_json(status) for status in found]}, indent=2))
    else:
        print(table(found) if found else f"no jobs below {folder}")
    return 0


def _logs(options: argparse.Namespace) -> int:
    from nemo_launcher.core.jobs import logs

    record = _one(options.job, options.results_dir)
    if record.job_id is None:
        raise UserError(Problem(options.job, "has not started: it has no log yet", "nemo-launcher status tells when"))
    if not (options.follow or any(log.exists() for log in record.logs)):
        raise UserError(Problem(options.job, "has written no log yet", "--follow waits for it"))
    if options.follow:
        logs.follow(record.logs, options.lines, lambda: any(status.is_active for status in statuses([record])))
    else:
        logs.show(record.logs, options.lines)
    return 0


def _cancel(options: argparse.Namespace) -> int:
    if bool(options.jobs) == options.all:
        raise UserError(Problem("cancel", "which jobs?", "name them, or give --all alone"))
    known = records.find(_results_dir(options.results_dir))
    chosen = known if options.all else [record for word in options.jobs for record in _named(word, known)]
    found = statuses({(record.record_file, record.job_id): record for record in chosen}.values())
    active = [status for status in found if status.is_active]
    if options.all and not active:
        print("no job waits or runs")
    for status in found:
        if not status.is_active and not options.all:
            print(f"{_title(status.record)}: not active ({status.state})")
    in_slurm = [status.record for status in active if status.record.cluster_type == "bcm"]
    done = [_cancel_local(status.record) for status in active if status.record.cluster_type != "bcm"]
    return 0 if _cancel_slurm(in_slurm) and all(done) else 1


def _named(word: str, known: list[JobRecord]) -> list[JobRecord]:
    """All jobs of a folder, or the one job of that id, name or stage."""
    return records.choose(word, known) if Path(word).is_dir() else [records.choose_one(word, known)]


def _cancel_slurm(jobs: list[JobRecord]) -> bool:
    if not jobs:
        return True
    refusal = slurm.cancel([str(job.job_id) for job in jobs])
    if refusal:
        print(f"not cancelled: {refusal}", file=sys.stderr)
        return False
    for job in jobs:
        print(f"{_title(job)}: cancelled (scancel)")
    return True


def _cancel_local(job: JobRecord) -> bool:
    """End a job's processes; one that only waits is left out by its launcher, which looks before it starts it."""
    if job.host != HOST or job.process is None:
        print(f"{_title(job)}: not cancelled, it runs on {job.host}: cancel it there", file=sys.stderr)
        return False
    records.write(dataclasses.replace(job, cancelled=True))
    done = "will not be started" if job.job_id is None else end_group(job.process, GRACE_S)
    print(f"{_title(job)}: {done}", flush=True)
    return True


def _rerun(options: argparse.Namespace) -> int:
    from nemo_launcher.core.launchers import LAUNCHERS

    record = records.read(_one(options.job, options.results_dir).record_file)
    assert record is not None  # it has just been found
    active = [status for status in statuses([record]) if status.is_active]
    if active:
        what = f"{_title(active[0].record)} is {active[0].state}"
        raise UserError(Problem(str(record.folder), what, "wait for its end, or cancel it: nemo-launcher cancel"))
    if not record.script_file.is_file():
        raise UserError(Problem(str(record.script_file), "no such file", "launch the stage again"))
    return LAUNCHERS[record.cluster_type].run_again(dataclasses.replace(record, submitted=time.time()))


def _one(word: str, results_dir: str | None) -> JobRecord:
    """The record of one job, with all that was started from its folder."""
    known = [] if Path(word).is_dir() else records.find(_results_dir(results_dir))
    return records.choose_one(word, known)


def _title(job: JobRecord) -> str:
    return f"{job.stage} {job.name}" + (f" (job {job.job_id})" if job.job_id is not None else "")


VERBS: dict[str, Any] = {
    "status": (_add_status, "the state of the jobs below a folder"),
    "logs": (_add_logs, "the end of a job's log"),
    "cancel": (_add_cancel, "end jobs: those of Slurm with scancel, local ones with all their processes"),
    "rerun": (_add_rerun, "start a job's own script again; training goes on from its checkpoint"),
}
