# SPDX-License-Identifier: Apache-2.0
"""Constraints on configuration values beyond their types, for Annotated types in config/sections."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

from nemo_launcher.files.foreign import MAX_NAME_BYTES
from nemo_launcher.hub.names import PREFIX

MAX_PATH_BYTES = 4095
"""Maximum length of a path on Linux."""
MAX_WHOLE_NUMBER = 2**31 - 1
"""Maximum of a whole number in a configuration, since some libraries store counts in 32 bits."""


_VARIABLE = re.compile(r"(?:(?<=/)|^)\$[A-Za-z_]\w*(?=/|$)", re.ASCII)
"""An unexpanded shell variable as a part of a path, from single quotes or a file."""


class Constraint(Protocol):
    """A rule for values of the correct type."""

    def broken(self, value: Any) -> str | None:
        """Return what is wrong with `value`, as text to follow its key; None if it is valid."""

    def instead(self, value: Any) -> object:
        """Return a valid value to suggest instead of an invalid one; None if there is none."""


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
    """The value to suggest; None for the violated bound."""

    def broken(self, value: float) -> str | None:
        if value < self.minimum or value > self.maximum or value <= self.above or value >= self.below:
            return f"must be {self.words}, not {value}"
        return None

    def instead(self, value: float) -> object:
        if self.example is not None:
            return self.example
        for bound, is_passed in ((self.minimum, value < self.minimum), (self.maximum, value > self.maximum)):
            if is_passed:
                return int(bound) if bound == int(bound) else bound
        return None

    @property
    def words(self) -> str:
        """Return the range in words, such as "at least 0 and below 1"."""
        names = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{name} {bound:g}" for name, bound in names.items() if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Form:
    """Text that matches a pattern."""

    pattern: str
    """The regular expression that the entire text must match."""
    words: str
    """The pattern in words, such as "DD:HH:MM:SS"."""
    example: str
    """A text that matches."""

    def broken(self, value: str) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"{shown(value)} is not {self.words}"

    def instead(self, value: object) -> object:
        return self.example


@dataclasses.dataclass(frozen=True)
class Length:
    """A list with a limited number of entries."""

    minimum: int
    """Minimum number of entries."""
    maximum: int | None = None
    """Maximum number of entries; None for no limit."""
    example: tuple[object, ...] = ()
    """A valid list."""

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
    """Text that names a file or folder: not empty, not too long, and with shell variables expanded."""

    or_hub: bool = False
    """Whether it may also name something on the Hugging Face Hub (hub.names)."""

    def absolute(self, value: str) -> str:
        """Return an absolute path; a name on the hub stays as it is."""
        return value if self.or_hub and value.startswith(PREFIX) else os.path.abspath(os.path.expanduser(value))

    def broken(self, value: str) -> str | None:
        found = _VARIABLE.search(value)
        return path_problem(value) if found is None else f"has the unexpanded shell variable {found[0]}: {value}"

    def instead(self, value: str) -> object:
        expanded = os.path.expandvars(value)
        return expanded if expanded != value else None


@dataclasses.dataclass(frozen=True)
class Lines:
    """Text that may have several lines; text without this constraint is a single line."""

    def broken(self, value: object) -> str | None:
        return None

    def instead(self, value: object) -> object:
        return None


@dataclasses.dataclass(frozen=True)
class Meant:
    """Words of other programs for a choice; they lead to a suggestion but are not accepted."""

    words: tuple[tuple[str, object], ...]
    """Pairs of such a word and the choice it means."""

    def broken(self, value: object) -> str | None:
        return None

    def instead(self, value: object) -> object:
        return dict(self.words).get(str(value).casefold())


def path_problem(path: str) -> str | None:
    """Return why a path cannot name a file; None if it can."""
    if not path.strip():
        return "is empty but must name a file or folder"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        return "is a URL but must name a local file or folder: nothing is downloaded"
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        return "has characters that are not valid text"
    if any(len(part) > MAX_NAME_BYTES for part in raw.split(b"/")):
        return f"has a part of more than {MAX_NAME_BYTES} bytes, the limit of file systems"
    if len(raw) > MAX_PATH_BYTES:
        return f"has {len(raw):,} bytes; the limit for a path is {MAX_PATH_BYTES}"
    return None


def control_character(text: str, *, lines: bool = False) -> str | None:
    """Return the first character that names, paths and script lines must not contain; None if there is none.

    These are control characters, line separators and surrogates (bytes on the command line that are not UTF-8).
    lines: whether to allow newlines and tabs.
    """
    if text.isprintable():  # the common case
        return None
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and not (lines and character in "\n\t"):
            return character
    return None


def character_problem(text: str, *, lines: bool = False) -> str | None:
    """Return a description of the first control character in `text`; None if there is none."""
    found = control_character(text, lines=lines)
    if found is None:
        return None
    if "\ud800" <= found <= "\udfff":
        return f"has a byte that is not UTF-8 ({found!a})"
    return f"has a {'line break' if found in chr(10) + chr(13) else 'control character'} ({found!a})"


def shown(value: object) -> str:
    """Return a value for messages: short, on one line, and with anything like an API key masked."""
    from nemo_launcher.config.secret_text import looks_like_key

    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, str) and looks_like_key(value):
        return "text that looks like an API key"
    text = ascii(value) if isinstance(value, str) and control_character(value) is not None else repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text):,} characters)"
