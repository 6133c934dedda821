# SPDX-License-Identifier: Apache-2.0
"""Names on the Hugging Face Hub, as configurations write them: `hf:NAME?key=value&...`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemo_launcher.errors import Problem, did_you_mean

PREFIX = "hf:"
FOLDER = "hub"
"""The folder below data_dir for fetched data, and for the records of fetched models."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


def parse(
    text: str, key: str, known: Iterable[str], *, kind: str, page: str, example: str
) -> tuple[str, dict[str, str], list[Problem]]:
    """Return the name, the values of the query, and the mistakes in `hf:NAME?key=value&...`.

    key: the key that holds the text; known: the query's keys; kind, page: what is named and where the hub lists it;
    example: a correct text.
    """
    name, _, query = text.removeprefix(PREFIX).partition("?")
    problems = []
    if not NAME.fullmatch(name):
        fix = f"name a {kind} of {page}, as in {example!r}; a folder or file needs no {PREFIX}"
        problems.append(Problem(key, f"{text!r}: {name!r} is not a name on the hub", fix))
    given: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        word, _, value = part.partition("=")
        if word not in known:
            problems.append(Problem(key, f"{text!r}: no {word!r} in {PREFIX} names", did_you_mean(word, known)))
        elif word in given or not value:
            what = "is given twice" if word in given else "has no value"
            problems.append(Problem(key, f"{text!r}: {word} {what}", f"write it once, as in {example!r}"))
        given[word] = value
    return name, given, problems


def written(name: str, values: Mapping[str, str | None]) -> str:
    """Return `hf:NAME?key=value&...`, without the values that are None."""
    query = "&".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return f"{PREFIX}{name}" + (f"?{query}" if query else "")


def file_below(data_dir: Path, text: str, suffix: str) -> Path:
    """Return the file below data_dir that belongs to a name; another name has another file."""
    words = re.sub(r"[^\w.-]+", "_", text.removeprefix(PREFIX)).strip("_")[:100]
    return data_dir / FOLDER / f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}{suffix}"
