# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hugging Face Hub, as data files name them: `hf:NAME?split=SPLIT[&revision=R][&config=C]`.

A launch fetches such a source once into a Parquet file below `data_dir` (data/hub_fetch.py), and jobs read that file. A
manifest beside it holds the commit that it was made from. This module imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import load_json
from nemo_launcher.hub.names import COMMIT, PREFIX, file_below, parse, written

_KEYS = ("split", "revision", "config")
_EDGE = r"(?:-?\d[\d_]*%?)?"
_PART = rf"\w+(?:\.\w+)*(?:\[{_EDGE}:{_EDGE}\])?"
_SPLIT = re.compile(rf"{_PART}(?:\+{_PART})*")
_EXAMPLE = "hf:squad?split=train[:1%]"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A part of a data set on the hub."""

    name: str
    """The data set, as in `squad` or `allenai/ai2_arc`."""
    split: str
    """The split in the notation of `datasets`, as in `train[:1%]` or `train+validation`."""
    revision: str | None = None
    """A branch, tag or commit; None for the commit that was newest when it was fetched."""
    config: str | None = None
    """One of the data set's configurations; None if it has only one or a default."""

    def __str__(self) -> str:
        return written(self.name, {key: getattr(self, key) for key in _KEYS})

    def file(self, data_dir: Path) -> Path:
        """Return the Parquet file that it is fetched into; another source has another file."""
        return file_below(data_dir, str(self), ".parquet")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a manifest says about a fetched file."""

    source: HubSource
    """The source, with the commit as its revision."""
    records: int
    """The number of records."""


def is_source(text: str) -> bool:
    """Return whether the name of a data file means the hub."""
    return text.startswith(PREFIX)


def parse_source(text: str, key: str) -> HubSource:
    """Return the source that `hf:...` names. key: the key that holds it. Raises UserError with all mistakes."""
    page = "huggingface.co/datasets"
    name, given, problems = parse(text, key, _KEYS, kind="data set", page=page, example=_EXAMPLE)
    if "split" not in given:
        problems.append(Problem(key, f"{text!r} names no split", f"write {PREFIX}{name}?split=train"))
    elif given["split"] and not _SPLIT.fullmatch(given["split"]):
        fix = "name a split or a part of one: train, train[:1%], train[100:200], train+validation"
        problems.append(Problem(key, f"{text!r}: {given['split']!r} is not a split", fix))
    if problems:
        raise UserError(problems)
    return HubSource(name, given["split"], given.get("revision"), given.get("config"))


def manifest_of(file: Path) -> Path:
    """Return the manifest beside a fetched file."""
    return file.with_suffix(".json")


def fetched(source: HubSource, file: Path) -> Fetched | None:
    """Return what was fetched into a file; None if nothing was, or not all of it."""
    try:
        found = load_json(manifest_of(file))
        commit, records, size = found["revision"], found["records"], found["bytes"]
        whole = found["source"] == str(source) and file.stat().st_size == size
    except (OSError, UserError, TypeError, KeyError):
        return None
    if not whole or not isinstance(commit, str) or not COMMIT.fullmatch(commit) or type(records) is not int:
        return None
    return Fetched(replace(source, revision=commit), records)
