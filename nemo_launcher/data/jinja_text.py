# SPDX-License-Identifier: Apache-2.0
"""Jinja templates, rendered in a sandbox within limits: they may come with a base or an adapter from anyone.

The sandbox is Jinja's own (ImmutableSandboxedEnvironment): no access to Python's internals, no change of values. Beyond
it, time and memory are limited (jinja_limits).
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nemo_launcher.data.jinja_limits import (
    LEFT_OUT,
    MAX_CHARACTERS,
    MAX_STEPS,
    LimitError,
    check_format,
    check_operator,
    checked_arguments,
    compared,
    concat_parts,
    counted,
    limited_filter,
    limited_work,
    shown,
    spend,
    text_of,
    tick,
    turns,
)
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

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
        with limited_work():
            for part in compiled.generate(**values, range=_Steps()):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS:
                    raise LimitError(f"the text has more than {MAX_CHARACTERS:,} characters")
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


class _Steps:
    """`range` with a limit for all calls in a rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._left -= len(steps)
        if self._left < 0:
            raise LimitError(f"range has more than {MAX_STEPS:,} steps")
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
    from jinja2 import StrictUndefined, Undefined, nodes, pass_context
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    from nemo_launcher.data.jinja_tree import COMPARED, COUNTED, TEXT, TICK, TURNS, with_counting

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
        """Jinja's sandbox with limits of time and memory."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})

        concat = staticmethod(concat_parts)

        def _parse(self, *source: Any) -> nodes.Template:
            return with_counting(super()._parse(*source))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:
            made = super().call(context, function, *checked_arguments(function, args), **options)
            spend(made)
            return made

        def wrap_str_format(self, value: Any) -> Any:
            fill = super().wrap_str_format(value)
            if fill is None:
                return None

            def limited(*args: Any, **options: Any) -> str:
                given = [item for arg in args for item in (arg.values() if isinstance(arg, dict) else [arg])]
                check_format(value.__self__, [*given, *options.values()])
                spend(value.__self__, *given)
                return str(fill(*args, **options))

            return limited

    def refuse(message: object) -> str:
        raise LimitError(str(message))

    def namespace(*given: Mapping[str, object], **values: object) -> Namespace:
        found = dict(*given, **values)
        if any(str(name).startswith("_") for name in found):
            raise LimitError("names in a namespace do not start with _")
        return Namespace(found)

    undefined = StrictUndefined if strict else Undefined
    environment = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=undefined,
        extensions=[Generation, loopcontrols],
        finalize=shown,
    )
    for name in LEFT_OUT:
        environment.filters.pop(name, None)
        environment.globals.pop(name, None)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.filters = {name: limited_filter(name, each) for name, each in environment.filters.items()}
    environment.filters |= {TURNS: turns, TEXT: text_of, COUNTED: counted, COMPARED: compared, TICK: pass_context(tick)}
    environment.globals["raise_exception"] = refuse
    environment.globals["namespace"] = namespace
    return environment
