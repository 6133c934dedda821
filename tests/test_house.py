# SPDX-License-Identifier: Apache-2.0
"""House rules visible in the sources: licence lines, length of files, a docstring under each field, no leftovers.

A list of exceptions may only get shorter: an entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.methods import METHODS, schemes

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted(ROOT.glob("nemo_launcher/**/*.py"))
SOURCES = sorted(
    [ROOT / "main.py", *PACKAGE]
    + [
        path
        for folder in ("benchmarks", "docs", "examples", "launcher_scripts", "tests")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
)
TEXTS = sorted(
    [ROOT / name for name in (".pre-commit-config.yaml", "Makefile", "mkdocs.yml", "pyproject.toml")]
    + [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("conf/**/*.yaml")]
)
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
MAX_LINES = 300

LONG: tuple[str, ...] = (
    "nemo_launcher/clusters/slurm/cluster.py",
    "tests/reliability/harness.py",
    "tests/reliability/hostile_names.py",
    "tests/reliability/mutations.py",
)
"""Files with more than MAX_LINES lines."""

LISTS_METHODS = ("tests/conformance/", "tests/oracle.py")
"""Where adapter methods may be listed: their suites, and what NVIDIA's files were made with."""

UNDOCUMENTED: tuple[str, ...] = ()
"""Modules with undocumented dataclass fields."""

LEFT_BEHIND = {
    "a note of work to be done": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HAC[K])\b"),
    "a path of the machine that it was written on": re.compile(r"(?<![\w.])/wor[k]/|/hom[e]/(?!user\b)\w"),
    "the name of a package index": re.compile(r"https?://[^\s\"')]*/simpl[e]\b|--(?:extra-)?index-ur[l]"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fields_without_docstring(tree: ast.AST) -> Iterator[str]:
    """Yield `Class.field` for each dataclass field without a docstring under it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if not (documented and isinstance(after.value.value, str)):
                        yield f"{node.name}.{ast.unparse(statement.target)}"


def method_lists(tree: ast.AST, methods: frozenset[str]) -> Iterator[int]:
    """Yield the line of each list, tuple, set or dictionary that names several methods: as entries, keys or ids."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            entries: list[ast.expr | None] = [*node.keys, *node.values]
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            entries = [*node.elts]
        else:
            continue
        names: set[object] = set()
        for entry in entries:
            parts: list[ast.expr | None] = [entry]
            if isinstance(entry, ast.Tuple | ast.List):
                parts = [*entry.elts]
            elif isinstance(entry, ast.Call):  # pytest.param
                parts = [*entry.args, *(keyword.value for keyword in entry.keywords)]
            names |= {part.value for part in parts if isinstance(part, ast.Constant)}
        if len(methods & names) > 1:
            yield node.lineno


def test_adapter_methods_are_listed_in_their_suites_alone():
    """A test of every method takes them from the registry (tests/methods.py), so that a new one is tested as well."""
    names = frozenset([*METHODS, *schemes()])
    found = {
        name_of(path): [*method_lists(ast.parse(path.read_text(encoding="utf-8")), names)]
        for path in ROOT.glob("tests/**/*.py")
        if not name_of(path).startswith(LISTS_METHODS)
    }

    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "['a', 'b']",
        "{'a': 1, 'b': 2}",
        "[('a', 2), ('b', 3)]",
        "[param(1, id='a'), param(2, id='b')]",
        "{'x': 'a', 'y': 'b'}",
    ],
)
def test_a_list_of_methods_is_found(text):
    assert [*method_lists(ast.parse(text), frozenset("ab"))] == [1]
    assert [*method_lists(ast.parse(text), frozenset("ac"))] == []


def test_each_source_file_begins_with_the_licence():
    heads = {name_of(path): path.read_text(encoding="utf-8").split("\n", 2) for path in SOURCES}

    assert [name for name, head in heads.items() if head[head[0].startswith("#!")] != LICENCE] == []


def test_only_the_listed_files_are_longer_than_the_limit():
    found = [name_of(path) for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES]

    assert tuple(found) == LONG


def test_only_the_listed_modules_have_fields_without_a_docstring():
    found = {
        name_of(path): [*fields_without_docstring(ast.parse(path.read_text(encoding="utf-8")))] for path in PACKAGE
    }
    lacking = {name: fields for name, fields in found.items() if fields}

    assert {name: fields for name, fields in lacking.items() if name not in UNDOCUMENTED} == {}
    assert tuple(lacking) == UNDOCUMENTED


def test_a_field_without_a_docstring_is_found():
    tree = ast.parse(
        '@dataclass(frozen=True)\nclass A:\n    """A."""\n    b: int\n    """B."""\n    c: int\n    d: int = 1\n'
    )

    assert list(fields_without_docstring(tree)) == ["A.c", "A.d"]


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_no_file_holds(what):
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in [*SOURCES, *TEXTS]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if LEFT_BEHIND[what].search(line)
    ]

    assert found == []
