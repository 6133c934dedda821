# SPDX-License-Identifier: Apache-2.0
"""Run kubectl with short timeouts, and read its answers about Jobs and pods."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass, field

from nemo_launcher.clusters.kubernetes.manifest import LABEL
from nemo_launcher.clusters.kubernetes.options import Object
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import parse_json

TIMEOUT_S = 10.0
"""Timeout of a query in seconds."""
ORDER_TIMEOUT_S = 60.0
"""Timeout of a submission or deletion in seconds."""
MAX_ASKED = 100
"""Maximum number of jobs in one command."""

Answer = subprocess.CompletedProcess[str]


@dataclass
class JobAndPods:
    """An existing Job and its pods."""

    job: Object
    """The Job as printed by kubectl."""
    pods: list[Object] = field(default_factory=list)
    """Its pods as printed by kubectl."""


def ask(namespace: str, *arguments: str) -> Answer | None:
    """Run a kubectl query; return None when kubectl is missing or does not answer."""
    return _run(namespace, arguments, TIMEOUT_S, "")


def order(namespace: str, *arguments: str, text: str = "") -> Answer | None:
    """Run a kubectl command that changes something; text: its standard input. Returns None as `ask` does."""
    return _run(namespace, arguments, ORDER_TIMEOUT_S, text)


def _run(namespace: str, arguments: Collection[str], timeout_s: float, text: str) -> Answer | None:
    # a new session: Ctrl-C must not interrupt a submission halfway
    try:
        return subprocess.run(
            ["kubectl", f"--namespace={namespace}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            start_new_session=True,
        )
    except (subprocess.TimeoutExpired, OSError):
        return None


def find(namespace: str, names: Collection[str]) -> dict[str, JobAndPods] | None:
    """Return the existing Jobs with these names and their pods; None when kubectl does not answer."""
    found: dict[str, JobAndPods] = {}
    names = list(dict.fromkeys(names))
    for start in range(0, len(names), MAX_ASKED):
        some = names[start : start + MAX_ASKED]
        answer = ask(namespace, "get", "jobs,pods", f"--selector={LABEL} in ({','.join(some)})", "--output=json")
        items = None if answer is None or answer.returncode else _items(answer.stdout)
        if items is None:
            return None
        jobs = {at(item, "metadata", "name"): item for item in items if item.get("kind") == "Job"}
        for name in some:
            if name in jobs:
                pods = [i for i in items if i.get("kind") == "Pod" and at(i, "metadata", "labels", LABEL) == name]
                found[name] = JobAndPods(jobs[name], pods)
    return found


def in_the_way(namespace: str, name: str) -> str:
    """Return what of an earlier Job of this name would be disturbed by a new one; nothing where that has ended.

    Two folders with the same path on different volumes have the same name in their namespace.
    """
    answer = ask(namespace, "get", "jobs,pods", f"--selector={LABEL} in ({name})", "--output=json")
    items = [] if answer is None or answer.returncode else _items(answer.stdout) or []
    for item in items:
        ends = at(item, "metadata", "deletionTimestamp") is not None
        if item.get("kind") == "Job" and not ends and not _has_ended(item):
            what = f"a Job {name} that is not known in this folder waits or runs in namespace {namespace}"
            return f"{what}; set cluster.job_name_prefix, or kubectl --namespace={namespace} delete job/{name}"
    if any(item.get("kind") == "Pod" and at(item, "status", "phase") in ("Pending", "Running") for item in items):
        return f"pods of the job that was {name} before still end, and may save a checkpoint; try again in some minutes"
    return ""


def _has_ended(job: Object) -> bool:
    conditions = listed(job, "status", "conditions")
    return any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions)


def _items(text: str) -> list[Object] | None:
    try:
        found = parse_json(text, "kubectl")
    except UserError:
        return None
    items = found.get("items") if isinstance(found, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else None


def at(value: object, *path: str) -> object:
    """Return the value at a path of keys in an answer; None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def listed(value: object, *path: str) -> list[Object]:
    """Return the list of objects at a path of keys; empty if there is none."""
    found = at(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def refusal(answer: Answer | None, timeout_s: float = ORDER_TIMEOUT_S) -> str:
    """Return kubectl's error on one line; empty on success."""
    if answer is None:
        return f"kubectl is missing or did not answer within {timeout_s:.0f} s"
    if answer.returncode == 0:
        return ""
    lines = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return "; ".join(lines[:5]) or f"kubectl: exit status {answer.returncode}"
