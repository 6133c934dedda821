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

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted(ROOT.glob("nemo_launcher/**/*.py"))
SOURCES = sorted(
    [ROOT / "main.py", *PACKAGE]
    + [path for folder in ("benchmarks", "launcher_scripts", "tests") for path in ROOT.glob(f"{folder}/**/*.py")]
)
TEXTS = sorted(
    [ROOT / name for name in (".pre-commit-config.yaml", "Makefile", "pyproject.toml")]
    + [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("conf/**/*.yaml")]
)
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
MAX_LINES = 300

LONG: tuple[str, ...] = (
    "nemo_launcher/checkpoint/archive.py",
    "nemo_launcher/clusters/slurm/cluster.py",
    "nemo_launcher/families/t5/model.py",
    "nemo_launcher/files/atomic.py",
    "tests/checkpoint/test_archive_refused.py",
    "tests/checkpoint/test_distributed.py",
    "tests/checkpoint/test_shards.py",
    "tests/clusters/test_interactive.py",
    "tests/clusters/test_kubernetes.py",
    "tests/clusters/test_slurm_jobs.py",
    "tests/data/test_batching.py",
    "tests/data/test_prompts.py",
    "tests/data/test_squad.py",
    "tests/data/test_tokenizers.py",
    "tests/integration/test_parallel.py",
    "tests/launcher/test_outputs.py",
    "tests/launcher/test_preflight.py",
    "tests/launcher/test_scripts.py",
    "tests/reliability/harness.py",
    "tests/reliability/hostile_names.py",
    "tests/reliability/mutation_kinds.py",
    "tests/reliability/mutations.py",
    "tests/training/test_model.py",
    "tests/training/test_resume.py",
    "tests/training/test_stopped.py",
)
"""Files with more than MAX_LINES lines."""

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
