# SPDX-License-Identifier: Apache-2.0
"""Deferred imports: when modules are imported after all, and that they then behave normally."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.runtime.deferred import defer, is_deferred

pytestmark = pytest.mark.unit
PACKAGE = """
import sys
sys.modules[__name__].__dict__.setdefault("runs", []).append(1)
from put_off.inner import VALUE
class Thing:
    kind = "real"
def make():
    return Thing()
"""
INNER = "VALUE = 3\nOBJECT = object()\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that defers the test package `put_off` and returns the result of `import put_off`."""
    folder = tmp_path / "put_off"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "inner.py").write_text(INNER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def deferred(*attributes: str, **stand_ins: Any) -> Any:
        defer("put_off", attributes, stand_ins)
        return importlib.import_module("put_off")

    yield deferred
    for name in ("put_off", "put_off.inner"):
        sys.modules.pop(name, None)


def test_importing_it_imports_nothing(package: Callable[..., Any]) -> None:
    module = package()
    assert is_deferred("put_off")
    assert "put_off.inner" not in sys.modules
    assert module.VALUE == 3
    assert not is_deferred("put_off")
    assert sys.modules["put_off"] is not module
    assert module.Thing is sys.modules["put_off"].Thing


def test_looking_where_modules_come_from_imports_nothing(package: Callable[..., Any], tmp_path: Path) -> None:
    module = package()
    assert inspect.getsourcefile(module) == str(tmp_path / "put_off/__init__.py")
    assert not hasattr(module, "__wrapped__")
    assert is_deferred("put_off")


def test_a_submodule_is_imported_once(package: Callable[..., Any]) -> None:
    package()
    inner = importlib.import_module("put_off.inner")
    real = sys.modules["put_off"]
    assert not is_deferred("put_off")
    assert real.runs == [1]
    assert real.inner is inner is sys.modules["put_off.inner"]
    assert inner.__spec__ is not None
    assert inner.__spec__.name == "put_off.inner"
    before = inner.OBJECT
    assert importlib.reload(inner).OBJECT is not before


def test_named_attributes_are_put_off_too(package: Callable[..., Any]) -> None:
    module = package("Thing", "make")
    thing, make = module.Thing, module.make
    assert not isinstance(3, thing)
    assert is_deferred("put_off")
    made = make()
    assert not is_deferred("put_off")
    assert isinstance(made, thing)
    assert not isinstance(3, thing)
    assert thing.kind == "real"

    class Derived(thing):
        pass

    assert isinstance(Derived(), sys.modules["put_off"].Thing)


def test_stand_ins_answer_until_it_is_imported(package: Callable[..., Any]) -> None:
    module = package(make=lambda: "nothing")
    assert module.make() == "nothing"
    assert is_deferred("put_off")
    assert module.VALUE == 3
    assert importlib.import_module("put_off").make().kind == "real"


def test_what_is_imported_or_absent_stays_so(package: Callable[..., Any]) -> None:
    defer("json")
    assert not is_deferred("json")
    for absent in ("no_such_package", "no_such_package.inner"):
        defer(absent)
        assert absent not in sys.modules
