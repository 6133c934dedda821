# SPDX-License-Identifier: Apache-2.0
"""A run held against what the Slurm cluster says of itself: partition, account, time limits, containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_launcher.clusters.slurm.cluster import Cluster, minutes
from nemo_launcher.clusters.slurm.signal_lead import lead_seconds
from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.launcher.stages import Learning, Stage


def check_cluster(
    stages: list[Stage], options: Mapping[str, Any], container: str | None, found: Cluster
) -> list[Problem]:
    """Hold a run against what the cluster answered. options: the `cluster` section."""
    problems = []
    if container is not None and found.containers is False:
        what = "this Slurm has no --container-image (the pyxis plugin is not installed)"
        problems.append(Problem("container", what, "container=null runs on the bare node"))
    account = options.get("account")
    if account is not None and found.accounts is not None and account not in found.accounts:
        fix = did_you_mean(account, found.accounts)
        problems.append(Problem("cluster.account", f"{account!r} is none of your accounts on this cluster", fix))
    if found.limits is None:
        return problems
    chosen = [name for name in str(options.get("partition") or found.default or "").split(",") if name]
    unknown = [name for name in chosen if name not in found.limits]
    for name in unknown:
        fix = did_you_mean(name, found.limits)
        problems.append(Problem("cluster.partition", f"this cluster has no partition {name!r}", fix))
    if chosen and not unknown:
        longest = max(chosen, key=found.limits.__getitem__)
        problems += [p for stage in stages if (p := _too_long(stage, longest, found.limits[longest])) is not None]
        usual = (found.usual or found.limits)[longest]
        problems += _shorter_than_signal(stages, options, longest, usual)
    return problems


def _shorter_than_signal(
    stages: list[Stage], options: Mapping[str, Any], partition: str, usual: float
) -> list[Problem]:
    """The time that a partition gives trainings that ask for none is to be more than the signal's lead."""
    lead = lead_seconds(str(options.get("signal") or ""))
    without = [stage for stage in stages if isinstance(stage, Learning) and not stage.run["time_limit"]]
    if lead is None or usual * 60 > lead or not without:
        return []
    what = f"comes {lead} s ahead of the time limit, but partition {partition!r} gives {usual:g} minutes to a job that"
    fix = f"cluster.signal=USR1@{max(1, int(usual * 60 / 2))}, or set {without[0].key('run.time_limit')}"
    return [Problem("cluster.signal", f"{what} asks for none", fix)]


def _too_long(stage: Stage, partition: str, limit: float) -> Problem | None:
    wanted = stage.run["time_limit"]
    if wanted is None or minutes(wanted) <= limit:
        return None
    most = f"{int(limit // 60):02d}:{int(limit % 60):02d}:00"
    key = stage.key("run.time_limit")
    return Problem(key, f"{wanted}, but jobs of partition {partition!r} end after {most}", f"\"{key}='{most}'\"")
