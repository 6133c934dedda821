# SPDX-License-Identifier: Apache-2.0
"""Check a configuration section against a dataclass and report every unknown key and invalid value.

Text is one line without control characters unless its type says otherwise (constraints.Lines), numbers are finite:
everything that reaches a script, a file name or an sbatch header has been checked here.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from nemo_launcher.config.constraints import MAX_WHOLE_NUMBER, Constraint, Form, Lines, Meant, character_problem, shown
from nemo_launcher.config.fields import Hidden
from nemo_launcher.config.guesses import candidates, examples
from nemo_launcher.config.keys import all_keys, has_keys, hints, is_section, type_at
from nemo_launcher.config.layers import LayerNumbers, selection_problem
from nemo_launcher.config.overrides import override
from nemo_launcher.config.variants import Variants
from nemo_launcher.errors import Problem, did_you_mean, nearest

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part: TypeAlias = Constraint | Hidden | Variants
"""The kinds of annotations in an Annotated type of a section."""


def check(value: object, schema: object, where: str, *, suggest: bool = True) -> list[Problem]:
    """Return a problem for everything in `value` that does not fit `schema`. where: the full key of `value`.

    suggest: whether to suggest a value instead of an invalid one.
    """
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if is_section(schema):
        return _check_section(value, schema, where, suggest)
    if origin is typing.Annotated:
        return _check_annotated(value, arguments[0], arguments[1:], where, suggest)
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, arguments, schema, where, suggest)
    if origin is typing.Literal:
        return [] if _is_choice(value, arguments) else [_wrong_choice(value, arguments, where)]
    if origin is list and isinstance(value, list):
        return [p for i, item in enumerate(value) for p in check(item, arguments[0], f"{where}.{i}", suggest=suggest)]
    if origin is dict and isinstance(value, dict):
        return list(_check_mapping(value, arguments[1], where, suggest))
    if schema is object:
        return _check_anything(value, where)
    if _fits_plain_type(value, schema):
        return _check_plain(value, where)
    fix = (suggest_value(value, schema, where) or _without_example(schema)) if suggest else ""
    return [Problem(where, f"must be {describe(schema)}, not {_what(value)}", fix)]


def fits(value: object, schema: object) -> bool:
    """Return whether `value` fits `schema`."""
    return not check(value, schema, "", suggest=False)


def suggest_key(key: str, known: Iterable[str], prefix: str) -> str:
    """Return a suggestion for an unknown key, with the nearest key written in full."""
    match = nearest(key, known)
    return f"did you mean {prefix + match!r}?" if match is not None else did_you_mean(key, known)


def suggest_value(value: object, schema: object, where: str) -> str:
    """Return an override with a valid value: the probably intended one, or an example."""
    for candidate in (*candidates(value), *examples(schema, [])):
        if fits(candidate, schema):
            return override(where, candidate)
    return ""


def _without_example(schema: object) -> str:
    """Return the fix when no value can be suggested."""
    return "leave it out, or set the keys below it one by one" if has_keys(schema) else ""


def describe(schema: object) -> str:
    """Return a description of what `schema` accepts."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin is typing.Annotated:
        return next((part.words for part in arguments if isinstance(part, LayerNumbers)), describe(arguments[0]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(argument) for argument in arguments))
    if origin is typing.Literal:
        words = dict.fromkeys(str(argument) for argument in arguments)
        return ("one of " if len(words) > 1 else "") + ", ".join(words)
    if origin is list:
        return f"a list ([...]), each entry {describe(arguments[0])}"
    if origin is dict or is_section(schema):
        return "a section with keys"
    return _PLAIN_NAMES.get(schema, str(schema))


_PLAIN_NAMES: dict[object, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    object: "anything",
}


def _check_section(value: object, schema: type[DataclassInstance], where: str, suggest: bool) -> list[Problem]:
    if not isinstance(value, dict):
        return [_no_section(value, where)]
    kinds = hints(schema)
    prefix = f"{where}." if where else ""
    problems = []
    for key, item in value.items():
        if key in kinds:
            problems += check(item, kinds[key], f"{prefix}{key}", suggest=suggest)
        else:
            found = selection_problem(f"{prefix}{key}", item) if "layers" in kinds else None
            problems.append(found or Problem(f"{prefix}{key}", "unknown key", suggest_key(str(key), kinds, prefix)))
    for field in dataclasses.fields(schema):
        if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
            problems.append(_missing(f"{prefix}{field.name}", kinds[field.name]))
    return problems


def _check_variants(value: object, variants: Variants, where: str, suggest: bool) -> list[Problem]:
    """Check a section against its chosen variant; without a choice, check each key against the variants with it."""
    if not isinstance(value, dict):
        return [_no_section(value, where)]
    chosen = variants.chosen(value)
    if chosen is not None:
        foreign = {f"{where}.{key}": variants.foreign_key(key, value, where) for key in variants.foreign_keys(value)}
        return [foreign.get(p.where) or p for p in _check_section(value, chosen, where, suggest)]
    problems = [] if variants.key in value else [_missing(f"{where}.{variants.key}", variants.names())]
    for key, item in value.items():
        hint = type_at(variants.schema(), [key]) if key != variants.key else variants.names()
        if hint is not None:
            problems += check(item, hint, f"{where}.{key}", suggest=suggest)
        else:
            known = all_keys(variants.schema(), "")
            problems.append(Problem(f"{where}.{key}", "unknown key", suggest_key(str(key), known, f"{where}.")))
    return problems


def _no_section(value: object, where: str) -> Problem:
    return Problem(where, f"must be a section with keys, not {_what(value)}", "set the keys below it one by one")


def _missing(where: str, schema: object) -> Problem:
    return Problem(where, "missing", f"set it to {describe(schema)}")


def _check_annotated(value: object, kind: object, parts: Sequence[Part], where: str, suggest: bool) -> list[Problem]:
    if isinstance(parts[0], Variants):
        return _check_variants(value, parts[0], where, suggest)
    constraints = [part for part in parts if not isinstance(part, (Hidden, Variants))]
    if len(constraints) < len(parts):  # Hidden
        fix = _without_example(kind)
        return [_without_value(problem, fix) for problem in check(value, kind, where, suggest=False)]
    if kind is str and isinstance(value, str) and any(isinstance(part, Lines) for part in constraints):
        problems = _check_text(value, where, lines=True)
    else:
        problems = check(value, kind, where, suggest=suggest)
    if problems and suggest:
        return [_with_meant(problem, value, kind, constraints, where) for problem in problems]
    for constraint in () if problems else constraints:
        what = constraint.broken(value)
        if what is not None:
            candidate = constraint.instead(value)
            fix = override(where, candidate) if _fits(candidate, kind, constraints) else ""
            problems.append(Problem(where, what, fix))
    return problems


def _with_meant(
    problem: Problem, value: object, kind: object, constraints: Sequence[Constraint], where: str
) -> Problem:
    """Return the problem with a fix from the constraints: the meaning of another program's word, or an example."""
    if problem.where != where:
        return problem
    with_meaning = [constraint for constraint in constraints if isinstance(constraint, (Form, Meant, LayerNumbers))]
    meant = [constraint.instead(value) for constraint in with_meaning]
    guesses = [*meant, *candidates(value), *examples(kind, constraints)]
    fix = next((override(where, guess) for guess in guesses if _fits(guess, kind, constraints)), problem.fix)
    return Problem(problem.where, problem.what, fix)


def _fits(value: object, kind: object, constraints: Sequence[Constraint]) -> bool:
    return value is not None and fits(value, kind) and not any(rule.broken(value) for rule in constraints)


def _without_value(problem: Problem, fix: str) -> Problem:
    """Return the problem without the value, which may be secret."""
    what, value, _ = problem.what.partition(", not ")
    return Problem(problem.where, what + (" (its value is not shown)" if value else ""), fix)


def _check_mapping(value: dict[object, object], schema: object, where: str, suggest: bool) -> Iterator[Problem]:
    for key, item in value.items():
        what = character_problem(key) if isinstance(key, str) else f"the key {key!r} is not text"
        if what is not None:
            yield Problem(f"{where}.{key}", what, "use letters, digits and _")
        yield from check(item, schema, f"{where}.{key}", suggest=suggest)


def _check_anything(value: object, where: str) -> list[Problem]:
    if isinstance(value, dict):
        return list(_check_mapping(value, object, where, False))
    if isinstance(value, list):
        return [problem for i, item in enumerate(value) for problem in _check_anything(item, f"{where}.{i}")]
    return _check_plain(value, where)


def _check_plain(value: object, where: str) -> list[Problem]:
    """Check what applies to every text and every number."""
    if isinstance(value, str):
        return _check_text(value, where, lines=False)
    if isinstance(value, float) and not math.isfinite(value):
        return [Problem(where, f"must be a finite number, not {value}")]
    if isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER:
        return [Problem(where, f"must be at most {MAX_WHOLE_NUMBER:,}, not {shown(value)}")]
    return []


def _check_text(value: str, where: str, *, lines: bool) -> list[Problem]:
    what = character_problem(value, lines=lines)
    return [] if what is None else [Problem(where, what, "remove it: the text must be one line of plain characters")]


def _check_union(
    value: object, alternatives: tuple[object, ...], schema: object, where: str, suggest: bool
) -> list[Problem]:
    if any(fits(value, alternative) for alternative in alternatives):
        return []
    for alternative in alternatives:
        if _is_word_beside(alternative, alternatives) and nearest(str(value), _words_of(alternative)) is None:
            continue
        if _same_kind(value, alternative):  # the intended alternative, whose own message is more specific
            return check(value, alternative, where, suggest=suggest)
    what = f"must be {describe(schema)}, not {_what(value)}"
    failures = [check(value, alternative, where, suggest=suggest) for alternative in alternatives]
    fixes = [problem.fix for problems in failures for problem in problems if problem.fix and problem.where == where]
    return [Problem(where, what, fixes[0] if fixes else "")]


def _is_word_beside(alternative: object, alternatives: Sequence[object]) -> bool:
    """Return whether a type is a few words beside another type, such as `auto` beside a number."""
    others = [other for other in alternatives if other not in (alternative, type(None))]
    return typing.get_origin(alternative) is typing.Literal and bool(others)


def _words_of(choices: object) -> list[str]:
    return [str(choice) for choice in typing.get_args(choices)]


def _same_kind(value: object, schema: object) -> bool:
    """Return whether `value` is of the same kind as `schema`: section, list, word, text or number."""
    origin = typing.get_origin(schema)
    if origin is typing.Annotated:
        return _same_kind(value, typing.get_args(schema)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_same_kind(value, alternative) for alternative in typing.get_args(schema))
    if isinstance(value, dict):
        return is_section(schema) or origin is dict
    if isinstance(value, list):
        return origin is list
    return _fits_plain_type(value, schema) or (origin is typing.Literal and isinstance(value, str))


def _is_choice(value: object, choices: tuple[object, ...]) -> bool:
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _wrong_choice(value: object, choices: tuple[object, ...], where: str) -> Problem:
    names = list(dict.fromkeys(str(choice) for choice in choices))
    match = next((choice for choice in choices if str(choice) == str(value)), None)
    if match is not None:  # 16.0, '16'
        return Problem(where, f"{_what(value)} is not a choice", override(where, match))
    return Problem(where, f"{_what(value)} is not a choice", did_you_mean(str(value), names))


def _fits_plain_type(value: object, schema: object) -> bool:
    if schema is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if schema is int:
        return isinstance(value, int) and not isinstance(value, bool)
    # Python 3.10 takes list[int] for a class
    return typing.get_origin(schema) is None and isinstance(schema, type) and isinstance(value, schema)


def _what(value: object) -> str:
    text = shown(value)
    return f"the text {text}" if isinstance(value, str) and text[:1] in "'\"" else text


def meant_alternative(value: object, alternatives: tuple[object, ...]) -> object:
    """Return the first member of a union that `value` fits."""
    return next(alternative for alternative in alternatives if fits(value, alternative))
