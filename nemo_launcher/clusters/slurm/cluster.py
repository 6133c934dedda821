# SPDX-License-Identifier: Apache-2.0
"""What the Slurm cluster knows of: partitions and their time limits, accounts, containers.

A command that is not there, fails or takes too long says nothing, and then nothing is checked against it.
"""

from __future__ import annotations

import getpass
import math
from dataclasses import dataclass

from nemo_launcher.clusters.slurm import text as slurm

TIMEOUT_S = 3.0
"""Slurm's commands wait for minutes when its controller is down."""
_PARTITIONS = ("sinfo", "--noheader", "--format=%P|%l|%L")
_CONFIG = ("scontrol", "show", "config")
_SRUN = ("srun", "--help")


@dataclass(frozen=True, slots=True)
class Cluster:
    """None where the cluster did not say.

    limits: longest job of each partition, in minutes; usual: how long one may run that gives no time; default: the
    partition of a job that names none; accounts: that this user may use; containers: srun knows --container-image.
    """

    limits: dict[str, float] | None = None
    usual: dict[str, float] | None = None
    default: str | None = None
    accounts: set[str] | None = None
    containers: bool | None = None


def ask_cluster(*, containers: bool) -> Cluster:
    """Ask all of Slurm's commands at once; `containers`: srun as well."""
    accounts = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={_user()}", "format=Account")
    commands = [_PARTITIONS, accounts, _CONFIG, *([_SRUN] if containers else [])]
    found = slurm.ask(*commands, timeout_s=TIMEOUT_S)
    answers = {c: None if a is None or a.returncode else a.stdout for c, a in zip(commands, found, strict=True)}
    limits, usual, default = _read_partitions(answers[_PARTITIONS])
    enforced = "associations" in _setting("AccountingStorageEnforce", answers[_CONFIG])
    names = set((answers[accounts] or "").split())
    help_text = answers.get(_SRUN)
    return Cluster(
        limits=limits,
        usual=usual,
        default=default,
        accounts=names if names and enforced else None,
        containers=None if help_text is None else "--container-image" in help_text,
    )


def minutes(limit: str) -> float:
    """Return a time as Slurm writes it, [DAYS-]HOURS:MINUTES:SECONDS and its short forms, in minutes."""
    days, dash, rest = limit.strip().rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    if dash:  # DAYS-HOURS[:MINUTES[:SECONDS]]
        hours, mins, seconds = (*parts, 0.0, 0.0)[:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:  # MINUTES[:SECONDS]
        hours, mins, seconds = 0.0, *(*parts, 0.0)[:2]
    return float(days or 0) * 24 * 60 + hours * 60 + mins + seconds / 60


def _read_partitions(answer: str | None) -> tuple[dict[str, float] | None, dict[str, float] | None, str | None]:
    """Return the longest and the usual time of each partition, and the name of the default one."""
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
