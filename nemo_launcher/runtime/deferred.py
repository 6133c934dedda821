# SPDX-License-Identifier: Apache-2.0
"""Modules that libraries import but a job never uses, put off until somebody does use them.

A deferred module is in `sys.modules`, so that importing it costs nothing; the first look at anything inside imports it.
Names that libraries take out of it as they are imported themselves (`from transformers import AutoModel`) can be named:
they are put off as well.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()  # two threads may ask for one module at once


def defer(module: str, attributes: Sequence[str] = (), stand_ins: Mapping[str, object] | None = None) -> None:
    """Put the import of `module` off; no effect when it is imported already, or is not installed.

    attributes: classes and functions that may be imported from it without importing it. stand_ins: what answers for
    attributes of these names until the module is imported for another reason.
    """
    if module in sys.modules:
        return
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # not even its package is there
        return
    if spec is None:
        return
    if not any(isinstance(finder, _SubmoduleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SubmoduleFinder())
    later = {name: _DeferredAttribute(module, name) for name in attributes}
    sys.modules[module] = _DeferredModule(spec, later | dict(stand_ins or {}))


def is_deferred(module: str) -> bool:
    """Return whether a module is still put off."""
    return isinstance(sys.modules.get(module), _DeferredModule)


def _load(name: str) -> ModuleType:
    """Return the module itself, imported where that was put off."""
    with _LOCK:
        if is_deferred(name):
            del sys.modules[name]
    return importlib.import_module(name)


class _DeferredModule(ModuleType):
    """Stands for a module in `sys.modules`, and afterwards for whoever has taken it from there."""

    def __init__(self, spec: ModuleSpec, attributes: Mapping[str, object]) -> None:
        super().__init__(spec.name)
        # Who looks through sys.modules (inspect, warnings) wants to know where modules come from, nothing else.
        self.__spec__, self.__file__ = spec, spec.origin
        self.__loader__, self.__package__ = spec.loader, spec.parent
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


class _DeferredAttribute:
    """Stands for a class or function of a deferred module."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(_load(self._module), self._name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type]:
        """Be the class itself where one is derived from it."""
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        """A class that is not imported has no instances."""
        return not is_deferred(self._module) and isinstance(instance, self._real())


class _SubmoduleFinder(MetaPathFinder):
    """Imports a deferred package when one of its submodules is imported, as the import system would have before."""

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return nothing new: a submodule is found as ever, or has been imported along with its package."""
        parent = fullname.rpartition(".")[0]
        if not is_deferred(parent):
            return None
        _load(parent)
        module = sys.modules.get(fullname)
        if module is None:
            return None
        loader = _Imported(module)
        module.__spec__ = None  # or the import system would take it, and execute the module once more
        return ModuleSpec(fullname, loader)


class _Imported(Loader):
    """The loader of a module that was imported while it was being looked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module as it is."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it was executed already. The import system has replaced its spec."""
        module.__spec__ = self._spec
