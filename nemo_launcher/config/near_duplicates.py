# SPDX-License-Identifier: Apache-2.0
"""The library of `model.data.near_duplicates`, for the launcher and the job."""

from __future__ import annotations

from collections.abc import Callable

from nemo_launcher.config.loggers import import_error
from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.errors import Problem

LIBRARY = "datasketch"
INSTALL = "pip install 'nemo-adapter-launcher[near-duplicates]'"


def near_duplicate_problems(data: LearningData, key: Callable[[str], str] = str) -> list[Problem]:
    """Return a problem if near-duplicates are looked for and the library cannot be imported here.

    key: converts a dotted key within the stage into the full key for messages.
    """
    what = None if data.near_duplicates is None else import_error(LIBRARY)
    where = key("model.data.near_duplicates")
    return [] if what is None else [Problem(where, what, f"{INSTALL}, or {where}=null")]
