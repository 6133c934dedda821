# SPDX-License-Identifier: Apache-2.0
"""What a result was made with: versions, the commit of a checkout, the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher import __version__, places
from nemo_launcher.files.atomic import finite_or_none, write_json

PROVENANCE_NAME = "provenance.json"
"""The file's name, in the folder of training_summary.json."""
_PACKAGES = ("torch", "numpy", "megatron-core", "nemo_toolkit", "lightning", "transformers", "tokenizers")
_GIT_SECONDS = 10.0


def provenance_of_process(*, device: str, ranks: int) -> dict[str, object]:
    """Return what this process runs on. device: its name, or cpu. ranks: the number of processes of the job."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "nemo-adapter-launcher": __version__,
        **_checkout(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "ranks": ranks,
    }


def file_facts(path: str, sha256: str, hub_data: Mapping[str, str] | None) -> dict[str, str]:
    """Return the facts about a data file. hub_data: the `hf:` names, with commits, of the files of the hub."""
    facts = {"path": path, "sha256": sha256}
    return facts | {"source": hub_data[path]} if hub_data and path in hub_data else facts


def write_provenance(path: Path, facts: dict[str, object]) -> None:
    """Write the facts as JSON. A write error is ignored: a job does not need the file."""
    with contextlib.suppress(OSError):
        write_json(path, finite_or_none(facts))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkout() -> dict[str, object]:
    """Return the commit of the checkout, and whether tracked files differ from it; {} for an installed package."""
    if places.INSTALLED:
        return {}
    home = places.PACKAGE.parent
    commit = _git(home, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(home, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints; None if it fails or the folder is not the top of a checkout."""
    if not (folder / ".git").exists():
        return None
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
