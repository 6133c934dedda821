# SPDX-License-Identifier: Apache-2.0
"""Fetch from the Hugging Face Hub in a process of its own, as its libraries take seconds to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nemo_launcher import exit_status, places
from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.foreign import first_line, parse_json

_LOGIN = "`hf auth login`, or export HF_TOKEN=..."


def run_child(module: str, arguments: list[str], where: str, environment: Mapping[str, str]) -> list[Problem]:
    """Run `python -m MODULE ARGUMENTS...` and return its problems. where: what it fetches.

    environment: variables in addition to those of this process. The process works in an empty folder, because
    `datasets` prefers a folder of a data set's name to the hub.
    """
    packages = os.pathsep.join(filter(None, [str(places.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="nemo_launcher_") as folder:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": packages, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    if done.returncode == exit_status.USER_ERROR and done.stdout:
        return [Problem(*problem) for problem in parse_json(done.stdout, where)]
    if done.returncode == 0:
        return []
    what = f"the process that fetches it ended with status {done.returncode}"
    return [Problem(where, what, "see its messages above")]


def child_status(fetch: Callable[[], object]) -> int:
    """Run `fetch` in the child, print its problems as JSON, and nothing else; return the exit status."""
    try:
        fetch()
    except UserError as error:
        print(json.dumps([[problem.where, problem.what, problem.fix] for problem in error.problems]))
        return exit_status.USER_ERROR
    return 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for, for messages."""

    where: str
    """The whole name, as in a configuration."""
    kind: str
    """data set or model."""
    name: str
    """Its name on the hub."""
    revision: str | None
    """The revision that is asked for."""
    page: str
    """The address of its page."""


def hub_problem(error: Exception, asked: Asked, *, disk: Problem, offline: Problem) -> Problem | None:
    """Return the problem for an error that any request to the hub may raise; None for another error.

    disk: the problem for an error of the disk, which replaces its text; offline: that if HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import errors

    where, page = asked.where, asked.page
    full = environment_message(error) if isinstance(error, OSError) else None
    if full is not None:
        return replace(disk, what=full)
    if isinstance(error, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return offline
    if isinstance(error, errors.GatedRepoError):
        return Problem(where, "is gated: its authors ask for consent", f"agree on {page}, and log in: {_LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return Problem(where, f"the hub has no public {asked.kind} {asked.name!r}", f"correct it; or log in: {_LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem(where, f"has no revision {asked.revision!r}", f"name a branch, tag or commit of {page}")
    return None


def not_fetched(error: Exception, where: str, fix: str) -> Problem:
    """Return the problem for an error of the connection. fix: what to do without one."""
    return Problem(where, f"cannot be fetched: {first_line(error)}", f"check the network and HF_ENDPOINT; or {fix}")
