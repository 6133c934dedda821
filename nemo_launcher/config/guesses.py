# SPDX-License-Identifier: Apache-2.0
"""Guess the intended value of a wrong one. The schema decides whether a guess is valid."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Iterator

from nemo_launcher.config.constraints import Bounds, Form, Length, PathForm

_TRUTH = {"yes": True, "on": True, "y": True, "1": True, "no": False, "off": False, "n": False, "0": False}


def candidates(value: object) -> Iterator[object]:
    """Yield values that one of the wrong type may stand for, such as 8 for '8', True for yes, [a] for a."""
    if isinstance(value, list) and len(value) == 1:
        yield value[0]
    if isinstance(value, (str, int)):
        word = str(value).strip().casefold()
        if word in _TRUTH:
            yield _TRUTH[word]
        if word in ("true", "false", "null", "none"):
            yield {"true": True, "false": False}.get(word)
    if isinstance(value, str):
        yield from _numbers(value)
        parts = [part.strip().strip("'\"") for part in value.strip().strip("[]").split(",")]
        yield [part for part in parts if part]
        yield [number for part in parts for number in list(_numbers(part))[:1]]
    if isinstance(value, float) and math.isfinite(value):
        yield round(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
        yield [value]


def examples(schema: object, parts: Iterable[object]) -> Iterator[object]:
    """Yield example values of a type. parts: its constraints if `schema` does not include them."""
    arguments = typing.get_args(schema)
    if typing.get_origin(schema) is typing.Annotated:
        schema, *parts = arguments
    for part in parts:
        if isinstance(part, Bounds):
            yield from (part.example, part.minimum if math.isfinite(part.minimum) else None)
        elif isinstance(part, Form):
            yield part.example
        elif isinstance(part, PathForm):
            yield "/path"
        elif isinstance(part, Length) and part.example:
            yield list(part.example)
        elif isinstance(part, Length) and part.maximum is not None:
            yield from ([example] * part.maximum for example in examples(arguments[0], []))
    if schema in (bool, int, float, str):
        yield {bool: True, int: 1, float: 0.1, str: "TEXT"}[schema]
    if typing.get_origin(schema) is list:
        yield from ([example] for example in examples(typing.get_args(schema)[0], []))


def _numbers(text: str) -> Iterator[int | float]:
    for convert in (int, float):
        try:
            number = convert(text.strip().replace(",", ""))
            if math.isfinite(number):
                yield number
                yield int(number)
        except (ValueError, OverflowError):
            continue
