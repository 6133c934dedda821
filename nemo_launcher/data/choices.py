# SPDX-License-Identifier: Apache-2.0
"""The answer choices of a record, for T-Few's losses and for rank classification; used without torch by the launcher.

A template names them: `choices_field`, a list of texts in each record, or `choices`, the same list for all records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.data.templates import TaskTemplate, wrong_choices
from nemo_launcher.errors import Problem, json_kind, nearest

_EXAMPLE = '"{}": ["yes", "no"]'
_SHOWN_CHARACTERS = 60


def choices_of(record: Mapping[str, object], template: TaskTemplate) -> list[str]:
    """Return the texts of a record's choices. The record has no problem (`choice_problems`)."""
    if template.choices_field is None:
        return list(template.choices)
    found = record[template.choices_field]
    return [str(choice) for choice in found] if isinstance(found, list) else []


def choice_problems(
    record: Mapping[str, object], where: str, template: TaskTemplate, *, for_train: bool
) -> Iterator[Problem]:
    """Yield the problems of a record's choices, if its template names any.

    where: `file:line`; for_train: the answer must be one of the choices.
    """
    if not template.has_choices:
        return
    if template.choices_field is not None:
        problems = list(_list_problems(record, where, template.choices_field))
        yield from problems
        if problems:
            return
    answer = record.get(str(template.answer_field))
    choices = choices_of(record, template)
    if for_train and template.is_jinja and template.answer_field in record and not isinstance(answer, str):
        what = f"field {template.answer_field!r} holds {json_kind(answer)}, not the text of a choice"
        yield Problem(where, what, "write the right choice in double quotes")
    if for_train and isinstance(answer, str) and answer.strip() and answer not in choices:
        match = nearest(answer, choices)
        shown = ", ".join(repr(choice[:_SHOWN_CHARACTERS]) for choice in choices[:8])
        fix = f"write {match!r}" if match else f"write one of them: {shown}"
        what = f"{template.answer_field!r} is {answer[:_SHOWN_CHARACTERS]!r}, which is not one of the choices"
        yield Problem(where, what, fix)


def _list_problems(record: Mapping[str, object], where: str, name: str) -> Iterator[Problem]:
    """Yield what is wrong with the list of choices in a record."""
    if name not in record:
        match = nearest(name, record)
        fix = f"did you mean {match!r}?" if match else f"add it, such as {_EXAMPLE.format(name)}"
        yield Problem(where, f"no field {name!r}, which choices_field names", fix)
        return
    value = record[name]
    if not isinstance(value, list):
        what = f"field {name!r} holds {json_kind(value)}, not a list of texts"
        yield Problem(where, what, f"write {_EXAMPLE.format(name)}")
        return
    for what in wrong_choices(value):
        yield Problem(where, f"field {name!r} {what}", f"write two or more different texts: {_EXAMPLE.format(name)}")


# --- tokens -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Branches:
    """The token sequences of a record's choices: what all of them share, and the rest of each.

    A cache stores flat lists of small numbers, so the rests stand one after the other.
    """

    shared: int
    """The number of first tokens that all choices have."""
    ids: list[int]
    """The tokens of each choice behind the shared ones, choice by choice."""
    owners: list[int]
    """The choice of each of these tokens."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], shared: int) -> Branches:
        """Return the branches of sequences that share their first `shared` tokens."""
        rests = [sequence[shared:] for sequence in sequences]
        owners = [choice for choice, rest in enumerate(rests) for _ in rest]
        return cls(shared, [token for rest in rests for token in rest], owners)

    def rests(self) -> list[list[int]]:
        """Return the tokens of each choice behind the shared ones."""
        found: list[list[int]] = [[] for _ in range(max(self.owners) + 1)]
        for token, owner in zip(self.ids, self.owners, strict=True):
            found[owner].append(token)
        return found


def alike_problems(rests: Sequence[Sequence[int]], source: str) -> list[Problem]:
    """Return a Problem if two choices have the same tokens."""
    seen = {tuple(rest) for rest in rests}
    if len(seen) == len(rests):
        return []
    fix = "write choices that differ in more than spaces or characters that the tokenizer does not know"
    return [Problem(source, "two choices have the same tokens", fix)]
