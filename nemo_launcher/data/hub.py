# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hugging Face Hub, as data files name them: `hf:NAME?split=SPLIT[&revision=R][&config=C]`.

A launch fetches such a source once into a Parquet file below `data_dir` (data/hub_fetch.py), and jobs read that file. A
manifest beside it holds the commit that it was made from. This module imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.files.foreign import load_json

PREFIX = "hf:"
FOLDER = "hub"
"""The folder below data_dir for fetched data."""

_KEYS = ("split", "revision", "config")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_EDGE = r"(?:-?\d[\d_]*%?)?"
_PART = rf"\w+(?:\.\w+)*(?:\[{_EDGE}:{_EDGE}\])?"
_SPLIT = re.compile(rf"{_PART}(?:\+{_PART})*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
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
        values = [(key, getattr(self, key)) for key in _KEYS]
        return f"{PREFIX}{self.name}?" + "&".join(f"{key}={value}" for key, value in values if value is not None)

    def file(self, data_dir: Path) -> Path:
        """Return the Parquet file that it is fetched into; another source has another file."""
        text = str(self)
        words = re.sub(r"[^\w.-]+", "_", text.removeprefix(PREFIX)).strip("_")[:100]
        return data_dir / FOLDER / f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.parquet"


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
    name, _, query = text.removeprefix(PREFIX).partition("?")
    problems = []
    if not _NAME.fullmatch(name):
        fix = f"name a data set of huggingface.co/datasets, as in {_EXAMPLE!r}; a folder or file needs no {PREFIX}"
        problems.append(Problem(key, f"{text!r}: {name!r} is not a name on the hub", fix))
    given: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        word, _, value = part.partition("=")
        if word not in _KEYS:
            problems.append(Problem(key, f"{text!r}: no {word!r} in {PREFIX} names", did_you_mean(word, _KEYS)))
        elif word in given or not value:
            what = "is given twice" if word in given else "has no value"
            problems.append(Problem(key, f"{text!r}: {word} {what}", f"write it once, as in {_EXAMPLE!r}"))
        given[word] = value
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
    if not whole or not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or type(records) is not int:
        return None
    return Fetched(replace(source, revision=commit), records)
