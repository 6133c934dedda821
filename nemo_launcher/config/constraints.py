# SPDX-License-Identifier: Apache-2.0
"""What a configuration value must be beyond its type; each is a part of an Annotated type in config/sections."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

from nemo_launcher.files.foreign import MAX_NAME_BYTES

MAX_PATH_BYTES = 4095
"""Of a whole path on Linux."""
MAX_WHOLE_NUMBER = 2**31 - 1
"""What no count of a configuration exceeds; libraries keep counts in 32 bits here and there."""


_VARIABLE = re.compile(r"(?:(?<=/)|^)\$[A-Za-z_]\w*(?=/|$)", re.ASCII)
"""A part of a path that is a variable of the shell, as in single quotes or in a file."""


class Constraint(Protocol):
    """One rule for a value whose type is right."""

    def broken(self, value: Any) -> str | None:
        """Return what is wrong with `value`, to stand behind its key; None when it is right."""

    def instead(self, value: Any) -> object:
        """Return a value to suggest for a wrong one; None when there is none."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """A finite number between bounds."""

    minimum: float = -math.inf
    """Lowest value, included."""
    maximum: float = math.inf
    """Highest value, included."""
    above: float = -math.inf
    """Lower bound, excluded."""
    below: float = math.inf
    """Upper bound, excluded."""
    example: float | None = None
    """The value to suggest; None: the bound that was crossed."""

    def broken(self, value: float) -> str | None:
        if value < self.minimum or value > self.maximum or value <= self.above or value >= self.below:
            return f"must be {self._range()}, not {value}"
        return None

    def instead(self, value: float) -> object:
        if self.example is not None:
            return self.example
        for bound, is_passed in ((self.minimum, value < self.minimum), (self.maximum, value > self.maximum)):
            if is_passed:
                return int(bound) if bound == int(bound) else bound
        return None

    def _range(self) -> str:
        names = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{name} {bound:g}" for name, bound in names.items() if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Form:
    """Text of a certain form."""

    pattern: str
    """The regular expression that the whole text matches."""
    words: str
    """The form in words, such as "DD:HH:MM:SS"."""
    example: str
    """A text of this form."""

    def broken(self, value: str) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"{shown(value)} is not {self.words}"

    def instead(self, value: object) -> object:
        return self.example


@dataclasses.dataclass(frozen=True)
class Length:
    """A list with a certain number of entries."""

    minimum: int
    """Fewest entries."""
    maximum: int | None = None
    """Most entries; None: any number."""
    example: tuple[object, ...] = ()
    """A list that is accepted."""

    def broken(self, value: Sequence[object]) -> str | None:
        if self.minimum <= len(value) <= (len(value) if self.maximum is None else self.maximum):
            return None
        if not value:
            return "must not be empty"
        return f"must have {self.maximum} entries, not {len(value)}"

    def instead(self, value: object) -> object:
        return list(self.example)


@dataclasses.dataclass(frozen=True)
class PathForm:
    """Text that names a file or folder: not empty, of a length that file systems take, and as a shell leaves it."""

    def broken(self, value: str) -> str | None:
        found = _VARIABLE.search(value)
        return path_problem(value) if found is None else f"holds {found[0]}, which no shell has replaced: {value}"

    def instead(self, value: str) -> object:
        expanded = os.path.expandvars(value)
        return expanded if expanded != value else None


@dataclasses.dataclass(frozen=True)
class Lines:
    """Text that may have several lines; without this part text is one line."""

    def broken(self, value: object) -> str | None:
        return None

    def instead(self, value: object) -> object:
        return None


@dataclasses.dataclass(frozen=True)
class Meant:
    """Other programs' words for a choice, which are suggested and never accepted."""

    words: tuple[tuple[str, object], ...]
    """Pairs of such a word and the choice that it means."""

    def broken(self, value: object) -> str | None:
        return None

    def instead(self, value: object) -> object:
        return dict(self.words).get(str(value).casefold())


def path_problem(path: str) -> str | None:
    """Return why no file can have this path; None when one can."""
    if not path.strip():
        return "is empty, and should name a file or folder"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return "is a URL, and should name a file or folder of this machine: nothing is downloaded"
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return "holds characters that are not text"
    if any(len(part) > MAX_NAME_BYTES for part in raw.split(b"/")):
        return f"has a part of more than {MAX_NAME_BYTES} bytes, which no file system takes"
    if len(raw) > MAX_PATH_BYTES:
        return f"has {len(raw):,} bytes; a path has at most {MAX_PATH_BYTES}"
    return None


def control_character(text: str, *, lines: bool = False) -> str | None:
    """Return the first character that no name, path or line of a script may hold; None when there is none.

    Control characters, line separators and halves of surrogate pairs (bytes of the command line that are not UTF-8).
    lines: newline and tab are right.
    """
    if text.isprintable():  # nearly always
        return None
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and not (lines and character in "\n\t"):
            return character
    return None


def character_problem(text: str, *, lines: bool = False) -> str | None:
    """Return what to tell of a control character in `text`; None when there is none."""
    found = control_character(text, lines=lines)
    if found is None:
        return None
    if "\ud800" <= found <= "\udfff":
        return f"has a byte that is not UTF-8 ({found!a})"
    return f"has a {'line break' if found in chr(10) + chr(13) else 'control character'} ({found!a})"


def shown(value: object) -> str:
    """Return a value as messages show it: short, on one line, and never what looks like a key."""
    from nemo_launcher.config.secret_text import looks_like_key

    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, str) and looks_like_key(value):
        return "a text that looks like a key"
    text = ascii(value) if isinstance(value, str) and control_character(value) is not None else repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text):,} characters)"
