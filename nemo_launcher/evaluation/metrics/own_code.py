# SPDX-License-Identifier: Apache-2.0
"""A metric of the user's own: `module:function`, from the working directory or PYTHONPATH.

This is the only code that a configuration can name. The names come from `evaluation.metrics` of the user's command line
and configuration files; archives and data files have no such key.
"""

from __future__ import annotations

import ast
import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from numbers import Real
from pathlib import Path

from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation.metrics.metric import Answered, Metric, mean_of, ratio

_NAME = re.compile(r"(?!\d)\w+(?:\.(?!\d)\w+)*:(?!\d)\w+")
_WANTED = "function(prediction, right_answers) must return a number from 0 to 1"


def is_own(name: str) -> bool:
    """Return whether a metric's name has the form of `module:function`."""
    return ":" in name


def problems(name: str, where: str) -> list[Problem]:
    """Return the problems of a `module:function` as far as they can be found without running it."""
    if not _NAME.fullmatch(name):
        return [Problem(where, f"{name!r} is not module:function", "write the names as in Python, as my_metrics:score")]
    module, _, function = name.partition(":")
    try:
        spec = _spec(module)
    except ImportError as error:
        return [_not_found(module, where, str(error))]
    if spec is None:
        return [_not_found(module, where)]
    source = Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None
    if source is None or not source.is_file():
        return []
    try:
        names = _names_in(ast.parse(source.read_bytes(), str(source)))
    except (SyntaxError, ValueError) as error:
        return [Problem(where, f"{source}: {error}", "correct the file")]
    if function in names or "*" in names:
        return []
    return [Problem(where, f"{source} has no function {function!r}", did_you_mean(function, names))]


def load(name: str, where: str) -> Metric:
    """Return the metric of a `module:function`, which is imported. Raises UserError if that fails."""
    module, _, function = name.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # after all other places; for good, as functions may import too
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(Problem(where, f"importing {module} raised {_told(error)}", "correct the module")) from error
    if not callable(found):
        raise UserError(Problem(where, f"{name} is not a function", _WANTED))
    scores = functools.partial(_scores, found, name, where, {})
    return Metric(name=name, title=function, kind="mean", scores=scores, statistics=mean_of(scores), figure=ratio)


def _scores(
    function: Callable[[str, list[str]], object],
    name: str,
    where: str,
    known: dict[tuple[str, tuple[str, ...]], float],
    questions: Sequence[Answered],
) -> list[float]:
    """Return the scores of questions; known: those of earlier calls, as the function may be slow."""
    found = []
    for question in questions:
        key = (question.prediction.strip(), tuple(question.answers))
        if key not in known:
            known[key] = _score(function, name, where, *key)
        found.append(known[key])
    return found


def _score(
    function: Callable[[str, list[str]], object], name: str, where: str, prediction: str, answers: Sequence[str]
) -> float:
    """Return one score. Raises UserError if the function raises or returns anything but a number from 0 to 1."""
    called = f"{name}({_short(prediction)}, {_short(list(answers))})"
    number = math.nan
    try:
        value = function(prediction, list(answers))
        with suppress(OverflowError):  # of whole numbers that no float can hold
            number = float(value) if isinstance(value, Real) else number
    except (Exception, SystemExit) as error:
        raise UserError(Problem(where, f"{called} raised {_told(error)}", "correct the function")) from error
    if not 0 <= number <= 1:
        raise UserError(Problem(where, f"{called} returned {_short(value)}", _WANTED))
    return number


def _spec(module: str) -> ModuleSpec | None:
    """Return where a module would be imported from, without importing its package."""
    path: Sequence[str] | None = [*sys.path, os.getcwd()]
    spec = None
    for depth, _ in enumerate(names := module.split("."), start=1):
        spec = PathFinder.find_spec(".".join(names[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


def _names_in(tree: ast.Module) -> set[str]:
    """Return the names that a module's statements define; `*` if it imports everything of another module."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    # definitions inside if and try statements
    return names | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _not_found(module: str, where: str, why: str = "") -> Problem:
    what = f"no module {module!r} in {os.getcwd()} or on PYTHONPATH" + (f": {why}" if why else "")
    return Problem(where, what, "start in the folder that holds it, or export PYTHONPATH=/path/to/that/folder")


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # the text of the user's own class
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # that of the user's own class, or of a number of thousands of digits
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
