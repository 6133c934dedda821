# SPDX-License-Identifier: Apache-2.0
"""What a stage takes from the Hugging Face Hub: a launch fetches it before any job starts; a dry run does not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from nemo_launcher.errors import Problem, UserError


class FromHub(Hashable, Protocol):
    """A data set or a model of the hub. Two that are equal are fetched once."""

    @property
    def source(self) -> object:
        """What is fetched; its text is the whole name."""

    def is_fetched(self) -> bool:
        """Return whether all of it is on this machine."""

    def described(self) -> str:
        """Return a line on what it is, or that a launch fetches it."""

    def fetch(self) -> list[Problem]:
        """Fetch it, and return what prevented that."""


def fetch_all(wanted: Iterable[FromHub], report: Callable[[str], object]) -> bool:
    """Fetch what is not there yet; return whether there was any. Raises UserError with all problems."""
    missing = [one for one in dict.fromkeys(wanted) if not one.is_fetched()]
    problems: list[Problem] = []
    for one in missing:
        report(f"Fetching {one.source}")
        problems += one.fetch()
    if problems:
        raise UserError(problems)
    return bool(missing)
