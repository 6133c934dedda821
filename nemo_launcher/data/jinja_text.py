# SPDX-License-Identifier: Apache-2.0
"""Jinja templates, rendered in a sandbox within limits: they may come with a base or an adapter from anyone.

The sandbox is Jinja's own (ImmutableSandboxedEnvironment): no access to Python's internals, no change of values. Beyond
it, the size of a text, the number of steps of `range` and repetitions of text are limited.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 16 * 2**20
"""The maximum length of a rendered text and of a text that a template repeats."""
MAX_STEPS = 100_000
"""The maximum number of steps of all `range(...)` in a template together."""
SPAN_START, SPAN_END = "\ufdd0", "\ufdd1"
"""What a template emits around {% generation %}; these code points are not characters of any text."""
_FILE = "<template>"  # Jinja's name for a template without a file
_FIX = "see https://jinja.palletsprojects.com/templates/"


def render(template: str, values: Mapping[str, object], where: str, *, strict: bool = True) -> str:
    """Return the rendered template; {% generation %} blocks are within SPAN_START and SPAN_END.

    strict: a name without a value is an error; chat templates test for values that a conversation may lack. where: the
    template's key or the record's place, for messages. Raises UserError, which names the line of the template, for
    errors in it and beyond the limits.
    """
    compiled = _compiled(template, where, strict=strict)
    parts: list[str] = []
    length = 0
    try:
        for part in compiled.generate(**values, range=_Steps()):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                raise _LimitError(f"the text has more than {MAX_CHARACTERS:,} characters")
    except (Exception, RecursionError) as error:  # whatever a filter or a method of a value raises
        line = next(
            (at.lineno for at in reversed(traceback.extract_tb(error.__traceback__)) if at.filename == _FILE), 0
        )
        what = f"line {line} of the template: {first_line(error)}" if line else f"the template: {first_line(error)}"
        raise UserError(Problem(where, what, "correct the template, or the record")) from None
    return "".join(parts)


def names_in(template: str, where: str) -> list[str]:
    """Return the names that a template reads from a record, in order. Raises UserError for a mistake in it."""
    from jinja2 import meta, nodes

    environment = _environment(strict=True)
    _compiled(template, where, strict=True)
    tree = environment.parse(template)
    undeclared = meta.find_undeclared_variables(tree)
    found = [node.name for node in tree.find_all(nodes.Name) if node.name in undeclared]
    return [name for name in dict.fromkeys(found) if name not in environment.globals]


class _LimitError(Exception):
    """A template exceeded a limit."""


class _Steps:
    """`range` with a limit for all calls in a rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._left -= len(steps)
        if self._left < 0:
            raise _LimitError(f"range has more than {MAX_STEPS:,} steps")
        return steps


def _compiled(template: str, where: str, *, strict: bool) -> Template:
    from jinja2 import TemplateError

    try:
        return _compile(template, strict=strict)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        what = f"line {line} of the template: {first_line(error)}" if line else f"the template: {first_line(error)}"
        raise UserError(Problem(where, what, _FIX)) from None
    except RecursionError:
        raise UserError(Problem(where, "the template is nested too deeply", _FIX)) from None


@lru_cache(maxsize=64)
def _compile(template: str, *, strict: bool) -> Template:
    from jinja2 import TemplateSyntaxError, nodes

    environment = _environment(strict=strict)
    private = next((n for n in environment.parse(template).find_all(nodes.NSRef) if n.attr.startswith("_")), None)
    if private is not None:
        raise TemplateSyntaxError(f"{private.attr!r} cannot be set", private.lineno)
    return environment.from_string(template)


@lru_cache(maxsize=2)
def _environment(*, strict: bool) -> ImmutableSandboxedEnvironment:
    """Return the environment, with the functions that chat templates of Hugging Face use.

    Without `strftime_now`: token ids do not depend on the day.
    """
    from jinja2 import StrictUndefined, Undefined
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: what an assistant said."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Any) -> str:
            return f"{SPAN_START}{caller()}{SPAN_END}"

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, in which text is not repeated without limit."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
            is_repeated = any(isinstance(side, str | list | tuple) for side in (left, right))
            if (is_repeated and sizes[0] * sizes[1] > MAX_CHARACTERS) or (operator == "**" and sizes[1] > MAX_STEPS):
                raise _LimitError(f"a repetition has more than {MAX_CHARACTERS:,} characters")
            return super().call_binop(context, operator, left, right)

    def refuse(message: object) -> str:
        raise _LimitError(str(message))

    def namespace(*given: Mapping[str, object], **values: object) -> Namespace:
        found = dict(*given, **values)
        if any(str(name).startswith("_") for name in found):
            raise _LimitError("names in a namespace do not start with _")
        return Namespace(found)

    undefined = StrictUndefined if strict else Undefined
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, undefined=undefined, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["namespace"] = namespace
    return environment
