# SPDX-License-Identifier: Apache-2.0
"""Errors for the user: what is wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, as shown to the user."""

    where: str
    """The key, file or `file:line` that the mistake is in."""
    what: str
    """The mistake."""
    fix: str = ""
    """What to write or run instead."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    -> {self.fix}" if self.fix else "")


class UserError(ValueError):
    """A user's mistake, shown without a traceback; holds every problem that was found, not only the first."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class WriteError(OSError):
    """A file that cannot be written; `filename` is the intended target, not the temporary file beside it."""


def json_kind(value: object) -> str:
    """Return the user's word for the type of a JSON or YAML value, such as `a list`."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


_ENVIRONMENT = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EROFS: "read-only file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "a name or path is too long",
    errno.ELOOP: "a symbolic link leads back to itself",
    errno.EFBIG: "larger than the file size limit (ulimit -f)",
    errno.EIO: "input/output error on the disk",
    errno.ESTALE: "stale file handle on the network file system",
}


def environment_message(error: OSError) -> str | None:
    """Return the message for an error of the user's environment, such as a full disk; None for any other error."""
    if isinstance(error, WriteError):
        return _write_message(error)
    if error.errno not in _ENVIRONMENT:
        return None
    return _ENVIRONMENT[error.errno] + (f": {error.filename}" if error.filename else "")


def _write_message(error: WriteError) -> str:
    reason = _ENVIRONMENT.get(error.errno or 0, error.strerror)
    if error.errno == errno.EPERM and error.strerror != os.strerror(errno.EPERM):
        reason = error.strerror  # our own, more specific text
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename} cannot be written: {reason}"
    return f"{reason} while writing {error.filename}{_room(error)}: free some space and start again"


def _room(error: WriteError) -> str:
    """Return the free space in the target's folder for a message; empty for a quota, where it says nothing."""
    folder = os.path.dirname(os.path.abspath(error.filename))
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free)" if error.errno == errno.ENOSPC else ""
    except OSError:
        return ""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice closest to `word`, or None when none is close."""
    names = list(choices)
    begun = [name for name in names if len(word) > 3 and name.casefold().startswith(word.casefold())]
    if len(begun) == 1:  # --tokens means --tokens-to-generate, although --top-k is closer in spelling
        return begun[0]
    folded = {name.casefold(): name for name in reversed(names)}
    matches = difflib.get_close_matches(word.casefold()[:200], list(folded), n=1, cutoff=0.6)
    if matches:
        return folded[matches[0]]
    holding = _holding(word, names)
    return holding[0] if len(holding) == 1 else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a suggestion for a misspelt `word`: the nearest choice, or the list of all choices."""
    names = sorted(choices)
    match = nearest(word, names)
    if match is not None:
        return f"did you mean {match!r}?"
    return f"choose from: {', '.join(_holding(word, names) or names)}" if names else "remove it"


def _holding(word: str, names: Iterable[str]) -> list[str]:
    """Return the names that contain `word` as one of their parts, as gpt3/squad contains gpt3."""
    return [name for name in names if word.casefold() in re.split(r"[/_.-]", name.casefold())]
