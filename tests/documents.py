# SPDX-License-Identifier: Apache-2.0
"""The documents that users read, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATHS = (
    *sorted(REPOSITORY.glob("*.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
    REPOSITORY / "benchmarks" / "README.md",
)
"""Every document."""
GENERATED = frozenset({"docs/keys.md"})
"""Documents that a command writes; they hold no commands."""


def name_of(path: Path) -> str:
    """Return a document's path in the repository."""
    return path.relative_to(REPOSITORY).as_posix()


TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in PATHS}
"""The text of each document, by its path in the repository."""
GUIDES = {name: text for name, text in TEXTS.items() if name not in {"CHANGELOG.md", *GENERATED}}
"""The documents that describe the present state, written by hand."""


def code_lines(text: str) -> list[str]:
    """Return the lines of the indented and fenced blocks, with continued lines joined."""
    fenced = re.findall(r"^```(?:bash|console|shell)?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^    .*\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.M)
    blocks = [*fenced, *(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in indented)]
    return [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]


LINES = [line for text in GUIDES.values() for line in code_lines(text)]
"""The lines of code of all guides."""


def commands(program: str) -> list[list[str]]:
    """Return every command that begins with `program`, split into words, without comments and repetitions."""
    lines = {line for line in LINES if line.startswith(program)}
    assert lines, f"no document shows a {program} command"
    return [shlex.split(line, comments=True) for line in sorted(lines)]


def words_in_backticks() -> list[tuple[str, str]]:
    """Return every `text` in backticks outside code and outside tables that a command writes, with its document.

    The writer of a table checks its keys; some are those of NVIDIA's launcher.
    """
    found = []
    for name, text in GUIDES.items():
        by_hand = re.sub(r"^<!-- ([\w-]+) -->$.*?^<!-- /\1 -->$", "", text, flags=re.MULTILINE | re.DOTALL)
        plain = re.sub(r"^```.*?^```$|^    .*$", "", by_hand, flags=re.MULTILINE | re.DOTALL)
        found += [(name, " ".join(word.split())) for word in re.findall(r"`([^`]+)`", plain)]
    return found
