# SPDX-License-Identifier: Apache-2.0
"""The versions that pyproject.toml allows are those that are tested: both files of constraints and the workflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from nemo_launcher.errors import UserError
from nemo_launcher.requirements import MINIMUM_PYTHON, MINIMUM_VERSIONS, check_libraries, is_transformers_5

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it along there
    import tomli as tomllib

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
DEVELOPERS = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
JOBS = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
LOCKED, LOWEST = "constraints.txt", "constraints-lowest.txt"


def lower_bound(specifier: SpecifierSet) -> Version:
    (bound,) = [Version(part.version) for part in specifier if part.operator in (">=", "==")]
    return bound


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), f"{file} pins exact versions"
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


LOWEST_PYTHON = str(lower_bound(SpecifierSet(PROJECT["requires-python"])))


def pythons(job: str) -> list[str]:
    """Return the versions of Python that a job of the workflow sets up."""
    (python,) = [step["with"]["python-version"] for step in JOBS[job]["steps"] if "setup-python" in str(step)]
    return JOBS[job]["strategy"]["matrix"]["python"] if "matrix" in python else [python]


def test_the_lowest_versions_tested_are_the_lower_bounds() -> None:
    lowest = pins(LOWEST)
    assert {need.name: lowest.get(canonicalize_name(need.name)) for need in NEEDED} == {
        need.name: lower_bound(need.specifier) for need in NEEDED
    }


def test_the_versions_that_are_told_are_the_lower_bounds() -> None:
    bounds = {need.name: lower_bound(need.specifier) for need in NEEDED if need.name in MINIMUM_VERSIONS}
    assert bounds == {name: Version(version) for name, version in MINIMUM_VERSIONS.items()}


@pytest.mark.parametrize(
    ("torch", "transformers", "old"),
    [
        ("2.5.1+cu124", "4.49.0", ["torch 2.5.1+cu124: 2.6 or later", "transformers 4.49.0: 4.57.1 or later"]),
        ("2.6.0a0+ecf3bae40a", "4.57.0", ["transformers 4.57.0: 4.57.1 or later"]),
        ("2.11.0+cu130", "5.17.0", None),
    ],
)
def test_older_libraries_are_told(
    torch: str, transformers: str, old: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose libraries pip was told not to touch."""
    installed = {"torch": torch, "transformers": transformers}
    monkeypatch.setattr("importlib.metadata.version", installed.__getitem__)
    if old is None:
        check_libraries()
        return
    with pytest.raises(UserError) as error:
        check_libraries()
    assert [f"{problem.where}: {problem.what}".removesuffix(" is needed") for problem in error.value.problems] == old


@pytest.mark.parametrize(("installed", "wanted"), [("4.57.6", False), ("5.0.0.dev0", True), ("5.17.0", True)])
def test_the_main_version_of_transformers(installed: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"transformers": installed}.__getitem__)
    assert is_transformers_5() is wanted


@pytest.mark.parametrize("file", [LOCKED, LOWEST])
def test_what_is_pinned_is_allowed(file: str) -> None:
    pinned = pins(file)
    needs = {canonicalize_name(need.name): need.specifier for need in [*NEEDED, *DEVELOPERS]}
    assert needs.keys() - pinned.keys() <= {"setuptools"}  # which `pip freeze` leaves out
    assert [name for name, specifier in needs.items() if name in pinned and pinned[name] not in specifier] == []


def test_the_lowest_python_is_the_one_that_is_checked_and_tested() -> None:
    assert ".".join(map(str, MINIMUM_PYTHON)) == LOWEST_PYTHON
    assert PYPROJECT["tool"]["mypy"]["python_version"] == LOWEST_PYTHON
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{LOWEST_PYTHON.replace('.', '')}"
    assert pythons("lowest") == [LOWEST_PYTHON]
    assert f"CONSTRAINTS={LOWEST}" in str(JOBS["lowest"]["steps"])
    assert all(Version(python) > Version(LOWEST_PYTHON) for python in pythons("locked"))


def test_the_documents_name_the_lowest_python() -> None:
    named = {
        (path.name, version)
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for version in re.findall(r"Python (3\.\d+) or\s+later", path.read_text(encoding="utf-8"))
    }
    assert {version for _, version in named} == {LOWEST_PYTHON}
    assert {name for name, _ in named} >= {"README.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize(
    ("package", "error"),
    [("transformer_engine", "ImportError"), ("transformer_engine", "RuntimeError"), ("flash_attn", "OSError")],
)
def test_a_broken_package_that_nothing_needs_is_told(package: str, error: str, tmp_path: Path) -> None:
    """As one that was compiled for another version of torch."""
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(f"raise {error}('libtorch.so: undefined symbol: _ZN3c104impl')\n")
    (tmp_path / "train.txt").write_text("")
    console = "import sys; from nemo_launcher.entry import console; sys.exit(console())"
    program = [sys.executable, "-c", console, "score", "--base", "no.nemo", str(tmp_path / "train.txt")]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert f"{package.replace('_', '-')}: is installed, but cannot be imported: libtorch.so: undefined" in done.stderr
    assert "uninstall" in done.stderr
    assert "Traceback" not in done.stderr
