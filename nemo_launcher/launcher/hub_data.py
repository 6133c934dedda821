# SPDX-License-Identifier: Apache-2.0
"""Data of the Hugging Face Hub in a launch: its local files in a stage's lists, fetched before any job starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.data.hub import HubSource, fetched, is_source, parse_source
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.hub.fetching import run_child
from nemo_launcher.launcher.from_hub import FromHub

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

    def is_fetched(self) -> bool:
        return fetched(self.source, self.path) is not None

    def described(self) -> str:
        found = fetched(self.source, self.path)
        if found is None:
            return f"{self.source}: is fetched at launch, to {self.path}"
        return f"{self.source}: {found.records:,} records of commit {found.source.revision}, in {self.path}"

    def fetch(self) -> list[Problem]:
        arguments = [str(self.source), str(self.path)]
        without_torch = {"USE_TORCH": "0"}  # a stream would import it
        return run_child("nemo_launcher.data.hub_fetch", arguments, str(self.source), without_torch)


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


def recorded(files: Iterable[FromHub]) -> dict[str, str]:
    """Return the `hf:` name of each file, with the commit if it is fetched."""
    pinned = {}
    for file in files:
        assert isinstance(file, HubFile)
        found = fetched(file.source, file.path)
        pinned[str(file.path)] = str(file.source if found is None else found.source)
    return pinned


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
