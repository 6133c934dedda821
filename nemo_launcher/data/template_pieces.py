# SPDX-License-Identifier: Apache-2.0
"""Prompt templates with {field}, parsed into fields and text; without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from nemo_launcher.errors import Problem

MAX_FIELD_LENGTH = 100
"""The maximum length of a field name in a template, in characters."""

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<lone>[{}])|[^{}]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt template."""

    text: str
    """The name of a field, or literal text."""
    is_field: bool
    """Whether it is a field."""


@lru_cache(maxsize=256)
def template_pieces(prompt_template: str) -> tuple[Piece, ...]:
    """Return the pieces of a prompt template: `{name}` is a field, `{{` and `}}` are braces, all else is text.

    An unmatched brace is text here; `brace_problems` reports it.
    """
    pieces: list[Piece] = []
    for match in _PIECE.finditer(prompt_template):
        if match["name"] is not None:
            pieces.append(Piece(match["name"], is_field=True))
            continue
        text = match[0][0] if match["brace"] else match[0]
        if pieces and not pieces[-1].is_field:
            text = pieces.pop().text + text
        pieces.append(Piece(text, is_field=False))
    return tuple(pieces)


def brace_problems(prompt_template: str, where: str) -> list[Problem]:
    """Return the problems of braces in a prompt template, with their positions, which count from 1."""
    problems = []
    for match in _PIECE.finditer(prompt_template):
        place, name = f"at character {match.start() + 1}", match["name"]
        if match["lone"] == "{":
            what = f"the brace {{ {place} is not closed"
            problems.append(Problem(where, what, "close it, as in {question}; write {{ for a literal brace"))
        elif match["lone"] == "}":
            what = f"the brace }} {place} has no opening brace"
            problems.append(Problem(where, what, "remove it; write }} for a literal brace"))
        elif name is not None and not name.strip():
            what = f"{{{name}}} {place} has no field name"
            problems.append(Problem(where, what, "add a name, as in {question}; write {{ and }} for literal braces"))
        elif name is not None and (len(name) > MAX_FIELD_LENGTH or not name.isprintable()):
            what = f"{{{name[:20]!r}...}} {place} is not a field name"
            fix = f"a name has up to {MAX_FIELD_LENGTH} printable characters; write {{{{ and }}}} for literal braces"
            problems.append(Problem(where, what, fix))
    return problems
