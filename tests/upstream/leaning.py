# SPDX-License-Identifier: Apache-2.0
"""Finds private names of other libraries that the package uses, overrides or replaces.

A name is private if it has one leading underscore. The search covers imports, attributes of anything except `self`,
names that a class shares with its bases in other libraries, names in `getattr` and similar calls, and assignments to
attributes of other libraries' modules by `=`, `setattr` or `vars(...).update`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "nemo_launcher"
Test = TypeVar("Test", bound=Callable[..., Any])
_BY_NAME = ("getattr", "hasattr", "setattr", "delattr")


class Use(NamedTuple):
    """A private name, or a replaced attribute (`torch.compile =`), and the file that depends on it."""

    file: str
    name: str


def leans_on(file: str, *names: str) -> Callable[[Test], Test]:
    """Declare the names that a test covers, and the package's file that uses them."""

    def mark(test: Test) -> Test:
        test.leans_on = [Use(file, name) for name in names]  # type: ignore[attr-defined]
        return test

    return mark


def sources() -> list[Path]:
    return sorted([ROOT / "main.py", *ROOT.glob(f"{PACKAGE}/**/*.py"), *ROOT.glob("launcher_scripts/**/*.py")])


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


# --- in the text of a file ------------------------------------------------------------------------------------------


def uses_in_text(text: str, file: str) -> set[Use]:
    """Return the private names that a file takes from other libraries, and the attributes that it replaces."""
    tree = ast.parse(text)
    foreign = set(_foreign_modules(tree))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and not _is_own(node.module):
            names |= {part for part in (node.module or "").split(".") if is_private(part)}
            names |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".") if is_private(part)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
            second = node.args[1] if len(node.args) > 1 else None
            if isinstance(second, ast.Constant) and is_private(str(second.value)) and not _is_self(node.args[0]):
                names.add(str(second.value))
            elif _root(node.args[0]) in foreign - {"sys"} and node.func.id in ("setattr", "delattr"):
                names.add(f"{ast.unparse(node.args[0])} =")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("vars("):
            (inside,) = node.func.value.args  # type: ignore[attr-defined]
            if _root(inside) in foreign:
                names.add(f"{ast.unparse(inside)} =")
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
            names |= {
                f"{ast.unparse(target)} ="
                for target in targets
                if isinstance(target, ast.Attribute) and _root(target) in foreign - {"sys"}
            }
    return {Use(file, name) for name in names}


def _foreign_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not _is_own(node.module):
            yield from (alias.asname or alias.name for alias in node.names)


def _is_own(module: str | None) -> bool:
    return (module or "").partition(".")[0] in (
        PACKAGE,
        "__future__",
        "_typeshed",
    )  # the last is only for type checkers


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


# --- in what its classes inherit ------------------------------------------------------------------------------------


def uses_by_inheritance(module: str) -> set[Use]:
    """Return the private names that the module's classes share with bases in other libraries."""
    found = set()
    loaded = importlib.import_module(module)
    for value in vars(loaded).values():
        if not (isinstance(value, type) and value.__module__ == module):
            continue
        theirs = set().union(*(_private_names(base) for base in value.__mro__ if _is_foreign(base)))
        for own in value.__mro__:  # including its mixins
            if _is_own(own.__module__):
                file = own.__module__.replace(".", "/") + ".py"
                found |= {Use(file, name) for name in _private_names(own) & theirs}
    return found


def _is_foreign(base: type) -> bool:
    return base.__module__ not in ("builtins", "typing", "abc", "enum", "collections.abc") and not _is_own(
        base.__module__
    )


@cache
def _private_names(base: type) -> frozenset[str]:
    """Return the private names of a class: those defined in its body, and those of `self` and `super()` in it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError):  # a built-in class
        return frozenset(name for name in vars(base) if is_private(name))
    names = {statement.name for statement in tree.body[0].body if isinstance(statement, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (_is_self(node.value) or ast.unparse(node.value) == "super()"):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node in _assigned(tree.body[0]):
            names.add(node.id)
    return frozenset(filter(is_private, names))


def _assigned(body: ast.stmt) -> list[ast.Name]:
    """Return the names that a class body assigns."""
    statements = [node for node in body.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    return [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name)]


# --- what is covered -------------------------------------------------------------------------------------------------


def covered() -> set[Use]:
    """Return what the tests in this folder cover."""
    uses: set[Use] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "leans_on":
                given = [argument.value if isinstance(argument, ast.Starred) else argument for argument in node.args]
                file, *names = (ast.literal_eval(argument) for argument in given)
                for name in names:
                    uses |= {Use(file, each) for each in (name if isinstance(name, tuple) else (name,))}
    return uses
