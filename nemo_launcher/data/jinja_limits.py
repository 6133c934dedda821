# SPDX-License-Identifier: Apache-2.0
"""The work that a Jinja template may do, counted in the turns of its loops, its calls and the text that they handle.

Jinja's sandbox limits neither time nor memory. What could make a large value is checked before it is made.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from contextvars import ContextVar
from itertools import chain
from typing import Any

MAX_CHARACTERS = 16 * 2**20
"""The maximum length of a rendered text and of any text in a template."""
MAX_STEPS = 100_000
"""The maximum number of steps of all `range(...)` in a template together, of items of a list, and of bits of a number.
"""
MAX_WORK = 300_000
"""The maximum number of turns and calls in a template; each KiB of text counts as one more."""

WIDENING = ("center", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill")
"""Methods of text and numbers that make a text as long as a number says."""
LEFT_OUT = ("batch", "center", "lipsum", "pprint", "random", "slice", "urlize", "wordwrap")
"""Filters and globals that do so, whose result depends on chance, or whose time is unknown."""
BY_REFERENCE = (
    *("attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr"),
    *("reverse", "select", "selectattr"),
)
"""Filters that do not read what is in the items of a list, or later, one by one."""
_LENGTH_OF_OTHERS = 8
"""What a number, an object and each place in a list count."""
_NUMBERS = (int, bool, float)
_MAX_INDENT = 100
_WIDE = re.compile(  # a width of five digits, or one that a value tells
    r"%(\([^)]*\))?[-+ #0.\d]*?(\d{5}|\*)|\{[^{}:]*:[^{}]*\d{5}|\{[\w.\[\]]*(![rsa])?:[^{}]*\{"
)


class LimitError(Exception):
    """A template exceeded a limit."""


_work: ContextVar[list[int]] = ContextVar("work")


@contextlib.contextmanager
def limited_work() -> Iterator[None]:
    """Count the work of one rendering. Raises LimitError in the template that exceeds MAX_WORK."""
    token = _work.set([0])
    try:
        yield
    finally:
        _work.reset(token)


def spend(*values: object) -> None:
    """Count one step on these values; of a list, only its places. Raises LimitError."""
    _spend(1 + sum(_length(value) >> 10 for value in values))


def spend_whole(*values: object) -> None:
    """Count one step on everything in these values. Raises LimitError."""
    _spend(1 + sum(size_of(value) >> 10 for value in values))


def _spend(steps: int) -> None:
    done = _work.get(None)
    if done is None:  # Jinja computes constants when it compiles
        return
    done[0] += steps
    if done[0] > MAX_WORK:
        raise LimitError(f"the template takes more than {MAX_WORK:,} steps")


def size_of(value: Any, known: dict[int, int] | None = None) -> int:
    """Return about how many characters a value has as text: of a list those of all its items, as often as they occur.

    known: the sizes of lists and mappings by id, as one of them may be an item of many.
    """
    if isinstance(value, str | bytes):
        return len(value)
    if type(value).__name__ == "Namespace":  # Jinja's, whose text shows its values
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        items: Iterable[Any] = chain.from_iterable(value.items())
    elif isinstance(value, list | tuple | Set | ValuesView):
        items = value
    else:
        return _LENGTH_OF_OTHERS
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = 0  # of a value inside itself
        total = 0
        for item in items:
            total += _LENGTH_OF_OTHERS + (_LENGTH_OF_OTHERS if type(item) in _NUMBERS else size_of(item, known))
        known[id(value)] = total
    return known[id(value)]


def tick(context: object, steps: int) -> str:
    """Count one turn of a loop or call, and further steps for a long body."""
    _spend(1 + steps)
    return ""


def counted(value: object) -> object:
    """Return a value that was cut out of another."""
    spend(value)
    return value


def compared(value: object) -> object:
    """Return a value that is compared with another."""
    spend_whole(value)
    return value


def shown(value: object) -> object:
    """Return the text of a value that a template prints."""
    if isinstance(value, str):
        spend()  # the text itself is counted where it is put together
        return value
    size = size_of(value)
    _check(size)
    _spend(1 + (size >> 10))
    return str(value)


def concat_parts(parts: Iterable[str]) -> str:
    """Return the text of a block, macro or call."""
    texts = list(parts)
    _check(sum(map(len, texts)))
    made = "".join(texts)
    spend(made)
    return made


def check_size(*values: object) -> None:
    """Raise LimitError if the text of a value would be too long."""
    for value in values:
        _check(size_of(value))


def turns(values: Iterable[object]) -> Iterator[object]:
    """Yield the values of a loop, counted."""
    for value in values:
        spend()
        yield value


def text_of(*parts: object) -> str:
    """Return the parts as one text (`~`)."""
    check_size(*parts)
    texts = [str(part) for part in parts]
    _check(sum(map(len, texts)))
    spend(*texts)
    return "".join(texts)


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raise LimitError if the result of +, *, ** or % may be too large."""
    spend(left, right)
    if isinstance(left, int) and isinstance(right, int):
        _check_number(operator, int(left), int(right))
    elif (
        operator == "+"
        and isinstance(left, str | bytes | list | tuple)
        and isinstance(right, str | bytes | list | tuple)
    ):
        _check(len(left) + len(right), _most(left))
    elif operator == "*" and isinstance(left, str | bytes | list | tuple) and isinstance(right, int):
        _check(len(left) * right, _most(left))
    elif operator == "*" and isinstance(right, str | bytes | list | tuple) and isinstance(left, int):
        _check(left * len(right), _most(right))
    elif operator == "%" and isinstance(left, str):
        check_format(left, list(right.values()) if isinstance(right, dict) else right)


def check_format(pattern: str, values: object) -> None:
    """Raise LimitError if a filled pattern of % or format may be too long. values: one, or a list or tuple of them."""
    if _WIDE.search(pattern):
        raise LimitError("a width in a format has more than 4 digits, or comes from a value")
    longest = max(map(size_of, values if isinstance(values, list | tuple) else [values]), default=0)
    _check(
        len(pattern)
        + (pattern.count("%") + pattern.count("{")) * max(longest, 10_000 * bool(re.search(r"\d\d", pattern)))
    )


def checked_arguments(method: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a method. Raises LimitError if its text would be too long, or it is not provided."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(owner, list | tuple):  # its methods compare
        spend_whole(owner, *args)
    spend(owner, *args)
    if isinstance(owner, str | bytes | int) and name in WIDENING:
        raise LimitError(f"{name} is not provided")
    if isinstance(owner, str) and name == "replace" and len(args) > 1 and all(isinstance(a, str) for a in args[:2]):
        _check(len(owner) + owner.count(args[0]) * len(args[1]))
    if isinstance(owner, str) and name == "join" and args:
        args = (list(turns(args[0])), *args[1:])  # of a generator too
        _check(size_of(args[0]) + len(args[0]) * len(owner))
    return args


def limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja that counts its work; its result is no longer than MAX_CHARACTERS."""
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def limited(*args: Any, **options: Any) -> Any:
        values = list(args[leading:])
        if name in BY_REFERENCE:
            spend(*values)
            made = function(*args[:leading], *values, **options)
            spend(made)
            return made
        check_size(*values, *options.values())
        if name == "join" and values:
            values[0] = list(turns(values[0]))
            separator = values[1] if len(values) > 1 else options.get("d", "")
            _check(size_of(values[0]) + len(values[0]) * size_of(separator))
        elif name == "replace":
            text, *given = map(str, values[:3])
            given += [str(options[key]) for key in ("old", "new") if key in options]
            _check(len(text) + (text.count(given[0]) * len(given[1]) if len(given) > 1 else 0))
        elif name == "format":
            check_format(str(values[0]), [*values[1:], *options.values()])
        elif name == "sum" and not isinstance(options.get("start", values[2] if len(values) > 2 else 0), int | float):
            raise LimitError("sum takes numbers")
        elif name in ("tojson", "indent"):
            widths = [value for value in (*values[1:], *options.values()) if not isinstance(value, bool)]
            if any(isinstance(width, int) and width > _MAX_INDENT for width in widths):
                raise LimitError(f"indents by more than {_MAX_INDENT}")
            widest = max((width if isinstance(width, int) else size_of(width) for width in widths), default=0)
            lines = values[0].count("\n") if isinstance(values[0], str) else size_of(values[0]) // _LENGTH_OF_OTHERS
            _check(size_of(values[0]) + lines * widest * (1 if name == "indent" else _depth(values[0])))
        spend_whole(*values)
        made = function(*args[:leading], *values, **options)
        spend(made)
        return made

    return limited


def _length(value: object) -> int:
    if isinstance(value, list | tuple | dict):
        return _LENGTH_OF_OTHERS * len(value)
    return len(value) if isinstance(value, str | bytes) else 0


def _depth(value: Any) -> int:
    """Return how deeply lists and mappings are nested."""
    depth, level = 0, [value]
    while level:
        inner = [v.values() if isinstance(v, Mapping) else v for v in level if isinstance(v, Mapping | list | tuple)]
        level = list({id(item): item for items in inner for item in items}.values())
        depth += 1
    return depth


def _check(length: int, most: int = MAX_CHARACTERS) -> None:
    if length > most:
        what = "characters" if most == MAX_CHARACTERS else "items"
        raise LimitError(f"a text or list has more than {most:,} {what}")


def _most(value: object) -> int:
    return MAX_CHARACTERS if isinstance(value, str | bytes) else MAX_STEPS


def _check_number(operator: str, left: int, right: int) -> None:
    bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(0, right)}.get(operator, 0)
    if bits > MAX_STEPS:
        raise LimitError(f"a number has more than {MAX_STEPS:,} bits")
