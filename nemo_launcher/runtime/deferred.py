# SPDX-License-Identifier: Apache-2.0
"""Deferred imports of modules that libraries import but a job rarely uses.

A deferred module is a placeholder in `sys.modules`, so that importing it costs nothing; the first attribute access
imports the module. Names that libraries import from it at their own import (`from transformers import AutoModel`) can
be listed and are deferred too.
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

_LOCK = threading.Lock()  # two threads may load one module at once


def defer(module: str, attributes: Sequence[str] = (), stand_ins: Mapping[str, object] | None = None) -> None:
    """Defer the import of `module`. Has no effect if it is already imported or not installed.

    attributes: classes and functions that can be imported from it without importing it. stand_ins: values for
    attributes until the module is imported for another reason.
    """
    if module in sys.modules:
        return
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # its parent package is not installed
        return
    if spec is None:
        return
    if not any(isinstance(finder, _SubmoduleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SubmoduleFinder())
    later = {name: _DeferredAttribute(module, name) for name in attributes}
    sys.modules[module] = _DeferredModule(spec, later | dict(stand_ins or {}))


def is_deferred(module: str) -> bool:
    """Return whether a module is still deferred."""
    return isinstance(sys.modules.get(module), _DeferredModule)


def _load(name: str) -> ModuleType:
    """Return the module itself, importing it if it was deferred."""
    with _LOCK:
        if is_deferred(name):
            del sys.modules[name]
    return importlib.import_module(name)


class _DeferredModule(ModuleType):
    """A placeholder in `sys.modules` that forwards to the module once it is loaded."""

    def __init__(self, spec: ModuleSpec, attributes: Mapping[str, object]) -> None:
        super().__init__(spec.name)
        # Code that walks sys.modules (inspect, warnings) reads only the origin of each module.
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
    """A placeholder for a class or function of a deferred module."""

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
        """Let a subclass derive from the class itself."""
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        """Return False until the class is imported: it cannot have instances before."""
        return not is_deferred(self._module) and isinstance(instance, self._real())


class _SubmoduleFinder(MetaPathFinder):
    """Loads a deferred package before one of its submodules is imported, as the import system requires."""

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Load the deferred parent package; return a spec only if that has imported the submodule already."""
        parent = fullname.rpartition(".")[0]
        if not is_deferred(parent):
            return None
        _load(parent)
        module = sys.modules.get(fullname)
        if module is None:
            return None
        loader = _Imported(module)
        module.__spec__ = None  # otherwise the import system would use it and execute the module again
        return ModuleSpec(fullname, loader)


class _Imported(Loader):
    """The loader for a module that was imported while its spec was being searched."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the imported module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the spec that the import system replaced; the module was executed already."""
        module.__spec__ = self._spec
