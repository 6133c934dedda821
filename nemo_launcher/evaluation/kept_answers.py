# SPDX-License-Identifier: Apache-2.0
"""The results so far of a long run, in a file beside its output from which the same command resumes.

Results are the tokens of generated answers, or the numbers of scored ones.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import IO, Generic, TypeGuard, TypeVar

from nemo_launcher.data.jsonl import bounded_lines, json_line
from nemo_launcher.errors import Problem, UserError, WriteError
from nemo_launcher.files.foreign import parse_json

_HEADER = "answers_of"
Number = TypeVar("Number", bound=float)


@dataclass(frozen=True, slots=True)
class Kind(Generic[Number]):
    """A kind of results, each of them a list of numbers."""

    name: str
    """What messages call several of them."""
    field: str
    """The name of the list in a line of the file."""
    fits: Callable[[object], TypeGuard[list[Number]]]
    """Returns whether a value of a line is such a list."""


class KeptAnswers(Generic[Number]):
    """A file with one JSON line per answer, after a line with a hash of everything that determines the answers.

    fix: what to do about a foreign file. kind: what the answers are. count: number of answers in the file.
    """

    def __init__(self, path: Path, fix: str, kind: Kind[Number]) -> None:
        self.path, self.count = path, 0
        self._fix, self._kind = fix, kind
        self._file: IO[bytes] | None = None

    def begin(self, key: str, *, replace_others: bool = False) -> dict[int, list[Number]]:
        """Return the existing answers by index, and open the file for more.

        key: hash of everything that determines the answers. replace_others: drop answers with another key. Raises
        UserError for a file without answers or, unless replace_others, with another key.
        """
        known, whole_bytes = self.read(key, replace_others=replace_others)
        self.count = len(known)
        with _naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self.path, flags, 0o600), "wb", buffering=0)
            self._file.truncate(whole_bytes)
            self._file.seek(whole_bytes)
        if not whole_bytes:
            self._add({_HEADER: key})
        return known

    def take(self, place: int, answer: Sequence[Number], **more: str) -> None:
        """Add one answer. more: further values for readers of the file. Raises WriteError."""
        self._add({"place": place, **more, self._kind.field: answer, "check": _checksum(place, answer)})
        self.count += 1

    def discard(self) -> None:
        """Make `close` remove the file, once all answers are written elsewhere."""
        self.count = 0

    def close(self) -> None:
        """Close the file, and remove it if it has no answers."""
        if self._file is not None:
            self._file.close()
            if not self.count:
                with suppress(OSError):
                    self.path.unlink()

    def _add(self, values: Mapping[str, object]) -> None:
        assert self._file is not None
        with _naming(self.path):
            self._file.write((json_line(values) + "\n").encode())

    def read(self, key: str, *, replace_others: bool = False) -> tuple[dict[int, list[Number]], int]:
        """Return the answers of an earlier run of the same command, and the number of valid bytes in its file.

        Raises UserError as `begin` does.
        """
        known: dict[int, list[Number]] = {}
        whole_bytes = 0
        if not self.path.exists():
            return known, 0
        if not self.path.is_file() or self.path.is_symlink():
            raise UserError(Problem(str(self.path), f"is not a file of {self._kind.name}", self._fix))
        with self.path.open("rb") as file:
            for number, line in enumerate(bounded_lines(file, str(self.path))):
                values = json_object(line) if line.endswith(b"\n") else {}
                if number == 0:
                    if values.get(_HEADER) != key:
                        if _HEADER in values and replace_others:
                            return known, 0
                        what = "has {} for other data or settings" if _HEADER in values else "is not a file of {}"
                        raise UserError(Problem(str(self.path), what.format(self._kind.name), self._fix))
                else:
                    place, answer = values.get("place"), values.get(self._kind.field)
                    if not _is_count(place) or not self._kind.fits(answer):
                        break  # a line that was being written when the run was interrupted
                    if values.get("check") != _checksum(place, answer):
                        break
                    known[place] = answer
                whole_bytes += len(line)
        return known, whole_bytes


def json_object(line: bytes) -> dict[str, object]:
    """Return the JSON object in a line; {} if there is none."""
    try:
        values = parse_json(line, "a line")
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}


def _checksum(place: int, answer: Sequence[float]) -> int:
    return zlib.crc32(f"{place} {list(answer)}".encode())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_numbers(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(isinstance(number, float) and isfinite(number) for number in value)


TOKENS = Kind("answers", "token_ids", _are_counts)
"""The token ids of generated answers."""
SCORES = Kind("scores", "scores", _are_numbers)
"""The numbers of scored answers."""


class _naming:
    """Turn a disk error into a WriteError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, OSError):
            raise WriteError(error.errno, error.strerror, str(self.path)) from error
