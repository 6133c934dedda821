# SPDX-License-Identifier: Apache-2.0
"""Check jobs against this Slurm cluster: partitions and their time limits, accounts, containers.

When a command is missing, fails or takes too long, the checks that need its answer are skipped.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.clusters.base import Settings, Site
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.slurm import commands as slurm
from nemo_launcher.clusters.slurm.signal_lead import lead_seconds
from nemo_launcher.clusters.times import minutes
from nemo_launcher.errors import Problem, did_you_mean

TIMEOUT_S = 3.0
"""Timeout in seconds; Slurm's commands wait for minutes when the controller is down."""
_PARTITIONS = ("sinfo", "--noheader", "--format=%P|%l|%L")
_CONFIG = ("scontrol", "show", "config")
_SRUN = ("srun", "--help")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a Slurm site allows; None for unknown values."""

    limits: dict[str, float] | None = None
    """The maximum time limit of each partition, in minutes."""
    usual: dict[str, float] | None = None
    """The default time limit of each partition, in minutes."""
    default: str | None = None
    """The default partition."""
    accounts: set[str] | None = None
    """The accounts that this user may charge."""
    containers: bool | None = None
    """Whether srun supports --container-image."""


def ask_cluster(*, containers: bool) -> Facts:
    """Run all of Slurm's queries in parallel; `containers`: include srun."""
    accounts = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={_user()}", "format=Account")
    commands = [_PARTITIONS, accounts, _CONFIG, *([_SRUN] if containers else [])]
    found = slurm.ask(*commands, timeout_s=TIMEOUT_S)
    answers = {c: None if a is None or a.returncode else a.stdout for c, a in zip(commands, found, strict=True)}
    limits, usual, default = _read_partitions(answers[_PARTITIONS])
    enforced = "associations" in _setting("AccountingStorageEnforce", answers[_CONFIG])
    names = set((answers[accounts] or "").split())
    help_text = answers.get(_SRUN)
    return Facts(
        limits=limits,
        usual=usual,
        default=default,
        accounts=names if names and enforced else None,
        containers=None if help_text is None else "--container-image" in help_text,
    )


_WITHOUT_PYXIS = "container=null runs on the bare node; container_runtime=apptainer needs no plugin"


class SlurmSite(Site):
    """This Slurm cluster, queried at most once with and once without containers."""

    def __init__(self) -> None:
        self._facts: dict[bool, Facts] = {}

    def problems(self, settings: Settings, jobs: Sequence[Job]) -> list[Problem]:
        containers = settings.container is not None and settings.container_runtime == "pyxis"
        if containers not in self._facts:
            self._facts[containers] = ask_cluster(containers=containers)
        return check_jobs(jobs, settings.cluster, settings.container if containers else None, self._facts[containers])


def check_jobs(
    jobs: Sequence[Job], options: Mapping[str, object], container: str | None, found: Facts
) -> list[Problem]:
    """Return the problems of jobs given the cluster's facts. options: the `cluster` section."""
    problems = []
    if container is not None and found.containers is False:
        what = "this Slurm has no --container-image (the pyxis plugin is not installed)"
        problems.append(Problem("container", what, _WITHOUT_PYXIS))
    account = options.get("account")
    if isinstance(account, str) and found.accounts is not None and account not in found.accounts:
        fix = did_you_mean(account, found.accounts)
        problems.append(Problem("cluster.account", f"{account!r} is not one of your accounts on this cluster", fix))
    if found.limits is None:
        return problems
    chosen = [name for name in str(options.get("partition") or found.default or "").split(",") if name]
    unknown = [name for name in chosen if name not in found.limits]
    for name in unknown:
        fix = did_you_mean(name, found.limits)
        problems.append(Problem("cluster.partition", f"this cluster has no partition {name!r}", fix))
    if chosen and not unknown:
        longest = max(chosen, key=found.limits.__getitem__)
        problems += [p for job in jobs if (p := _too_long(job, longest, found.limits[longest])) is not None]
        usual = (found.usual or found.limits)[longest]
        problems += _shorter_than_signal(jobs, options, longest, usual)
    return problems


def _shorter_than_signal(
    jobs: Sequence[Job], options: Mapping[str, object], partition: str, usual: float
) -> list[Problem]:
    """Return a problem if a partition's default time limit is not longer than the signal's lead."""
    lead = lead_seconds(str(options.get("signal") or ""))
    without = [job for job in jobs if job.progress_file is not None and not job.time_limit]
    if lead is None or usual * 60 > lead or not without:
        return []
    what = f"comes {lead} s before the time limit, but partition {partition!r} gives {usual:g} minutes to a job"
    fix = f"cluster.signal=USR1@{max(1, int(usual * 60 / 2))}, or set {without[0].stage}.run.time_limit"
    return [Problem("cluster.signal", f"{what} without a time limit", fix)]


def _too_long(job: Job, partition: str, limit: float) -> Problem | None:
    wanted = job.time_limit
    if wanted is None or minutes(wanted) <= limit:
        return None
    most = f"{int(limit // 60):02d}:{int(limit % 60):02d}:00"
    key = f"{job.stage}.run.time_limit"
    return Problem(key, f"{wanted}, but partition {partition!r} allows at most {most}", f"\"{key}='{most}'\"")


def _read_partitions(answer: str | None) -> tuple[dict[str, float] | None, dict[str, float] | None, str | None]:
    """Return the maximum and the default time limit of each partition, and the default partition's name."""
    rows = [[*line.strip().split("|"), ""] for line in (answer or "").splitlines() if "|" in line]
    limits = {name.rstrip("*"): _partition_limit(limit) for name, limit, *_ in rows}
    usual = {
        name.rstrip("*"): _partition_limit(given if given[:1].isdigit() else limit) for name, limit, given, *_ in rows
    }
    default = next((name.rstrip("*") for name, *_ in rows if name.endswith("*")), None)
    return limits or None, usual or None, default


def _partition_limit(limit: str) -> float:
    return minutes(limit) if limit.strip()[:1].isdigit() else math.inf  # infinite, n/a


def _setting(name: str, answer: str | None) -> str:
    lines = [line.partition("=") for line in (answer or "").splitlines()]
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return ""
