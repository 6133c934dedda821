# SPDX-License-Identifier: Apache-2.0
"""Data of the Hugging Face Hub in a launch: its local files in a stage's lists, fetched before any job starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher import exit_status, places
from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.data.hub import HubSource, fetched, is_source, parse_source
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json

LISTS = ("model.data.train_ds", "model.data.validation_ds", "model.data.test_ds", "data_paths")
"""The keys of a stage that list data files."""
RECORDED = "hub_data"
"""The key in `run` for the commits of fetched files."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A source on the hub, and the file that jobs read instead."""

    source: HubSource
    """The source."""
    path: Path
    """The file, below data_dir."""


def hub_problems(section: Mapping[str, object], name: str) -> list[Problem]:
    """Return the mistakes in the `hf:` names of a stage's section."""
    problems: list[Problem] = []
    for key, text in _named(section):
        try:
            parse_source(text, f"{name}.{key}")
        except UserError as error:
            problems += error.problems
    return problems


def localized(config: dict[str, object], data_dir: Path) -> tuple[dict[str, object], list[HubFile]]:
    """Return a section with the local file in place of each `hf:` name, and these files."""
    files = {text: HubFile(source, source.file(data_dir)) for text, source in _sources(config)}
    if not files:
        return config, []
    values: dict[str, object] = {}
    for key in LISTS:
        listed = value_of(config, key)
        if isinstance(listed, list):
            values[key] = [str(files[text].path) if text in files else text for text in listed]
    return with_values(config, values), list(files.values())


def recorded(files: Iterable[HubFile]) -> dict[str, str]:
    """Return the `hf:` name of each file, with the commit if it is fetched."""
    pinned = {}
    for file in files:
        found = fetched(file.source, file.path)
        pinned[str(file.path)] = str(file.source if found is None else found.source)
    return pinned


def described(files: Iterable[HubFile]) -> list[str]:
    """Return a line on each file: what it holds, or that a launch fetches it."""
    lines = []
    for file in files:
        found = fetched(file.source, file.path)
        told = f"{file.source}: is fetched at launch, to {file.path}"
        if found is not None:
            told = f"{file.source}: {found.records:,} records of commit {found.source.revision}, in {file.path}"
        lines.append(told)
    return lines


def fetch_all(files: Iterable[HubFile], report: Callable[[str], object]) -> bool:
    """Fetch the files that are not there yet; return whether there were any. Raises UserError with all problems."""
    missing = [file for file in dict.fromkeys(files) if fetched(file.source, file.path) is None]
    problems: list[Problem] = []
    for file in missing:
        report(f"Fetching {file.source}")
        problems += _fetch(file)
    if problems:
        raise UserError(problems)
    return bool(missing)


def _fetch(file: HubFile) -> list[Problem]:
    """Fetch a file in a process of its own, and return its problems.

    It works in an empty folder, because `datasets` prefers a folder of the data set's name to the hub.
    """
    command = [sys.executable, "-m", "nemo_launcher.data.hub_fetch", str(file.source), str(file.path)]
    packages = os.pathsep.join(filter(None, [str(places.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="nemo_launcher_") as folder:
        environment = os.environ | {"PYTHONPATH": packages, "USE_TORCH": "0"}  # a stream would import torch
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    if done.returncode == exit_status.USER_ERROR and done.stdout:
        return [Problem(*problem) for problem in parse_json(done.stdout, str(file.source))]
    if done.returncode == 0:
        return []
    what = f"the process that fetches it ended with status {done.returncode}"
    return [Problem(str(file.source), what, "see its messages above")]


def _named(section: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of each `hf:` name in a stage's section."""
    for key in LISTS:
        listed = value_of(section, key)
        for text in listed if isinstance(listed, list) else ():
            if isinstance(text, str) and is_source(text):
                yield key, text


def _sources(section: Mapping[str, object]) -> Iterator[tuple[str, HubSource]]:
    for key, text in _named(section):
        yield text, parse_source(text, key)
