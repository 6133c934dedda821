# SPDX-License-Identifier: Apache-2.0
"""Test scripts before the first one is submitted: their shell syntax, and sbatch's verdict."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_launcher.clusters.script import syntax_error
from nemo_launcher.clusters.slurm import commands as slurm
from nemo_launcher.errors import Problem

SETUP = "cluster.setup"
OWN_TO_A_JOB = ("error", "output", "job-name", "dependency", "comment")
"""Options that differ between jobs and cannot cause a refusal; a dependency may not exist yet."""
UNAVAILABLE = "Requested node configuration is not available"
NOT_SET_UP = "configuration source"
"""Part of sbatch's error when it is installed but not configured for a cluster."""
UP = ("allocated", "completing", "idle", "mixed", "planned", "reserved")
KEYS = {
    "qos": "cluster.qos",
    "account": "cluster.account",
    "reservation": "cluster.reservation",
    "partition": "cluster.partition",
    "node configuration": "cluster.gres, cluster.mem, cluster.cpus_per_task, trainer.devices or trainer.num_nodes",
}
"""Maps a word in sbatch's refusal to the keys that may have caused it."""


def setup_problems(lines: list[str]) -> list[Problem]:
    """Return the shell's syntax error in `cluster.setup`."""
    error = syntax_error("\n".join(lines))
    fix = f'correct the line; for several lines: \'{SETUP}=["first line","second line"]\''
    return [Problem(SETUP, f"the shell cannot read it: {error}", fix)] if error else []


def try_scripts(scripts: Iterable[tuple[str, str]]) -> tuple[list[Problem], list[Problem]]:
    """Test (stage, script) pairs with `sbatch --test-only`, once for each set of options.

    Returns the refusals, and separately those that are due only to nodes being down: Slurm queues such jobs.
    """
    refused: list[Problem] = []
    waiting: list[Problem] = []
    tried: set[tuple[str, ...]] = set()
    for stage, script in scripts:
        options = tuple(line for line in script.splitlines() if line.startswith("#SBATCH") and not _is_own(line))
        if options in tried:
            continue
        tried.add(options)
        answer = slurm.order(["sbatch", "--test-only"], text="\n".join(["#!/bin/bash", *options, "true"]) + "\n")
        if answer is None:
            what = f"sbatch did not answer within {slurm.ORDER_TIMEOUT_S:.0f} s"
            return [Problem("cluster_type", what, "try again when sinfo answers")], []
        if answer.returncode:
            refusal = _refusal(answer.stderr)
            problem = Problem(stage, f"sbatch rejects the job: {refusal}", _fix(refusal))
            (waiting if UNAVAILABLE in refusal and _nodes_are_down(options) else refused).append(problem)
    return refused, waiting


def _is_own(line: str) -> bool:
    return line.removeprefix("#SBATCH --").partition("=")[0] in OWN_TO_A_JOB


def _refusal(text: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def _fix(refusal: str) -> str:
    if NOT_SET_UP in refusal:
        return "no cluster is configured here; to run on this machine: cluster_type=interactive"
    key = next((key for word, key in KEYS.items() if word in refusal), None)
    return f"change {key}" if key else "preflight=warn submits it anyway, if sbatch accepts it"


def _nodes_are_down(options: Iterable[str]) -> bool:
    """Return whether a node of the job's partition is down or drained; sbatch --test-only treats it as absent."""
    chosen = [option.partition("=")[2] for option in options if option.startswith("#SBATCH --partition=")]
    partition = [f"--partition={chosen[0]}"] if chosen else []
    (answer,) = slurm.ask(["sinfo", "--noheader", "--format=%T", *partition])
    states = [] if answer is None else answer.stdout.split()
    return any(state.strip("*~#!%$@^-") not in UP for state in states)
