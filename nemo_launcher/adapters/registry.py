# SPDX-License-Identifier: Apache-2.0
"""The adapter methods by name. A method is a folder in adapters/methods whose config.py registers it; imports no torch.

Everything else that differs between methods is asked here: the schema of `adapter_tuning`, the estimate at launch,
checks, archives, and the tests of adapters/methods.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

import nemo_launcher.adapters.methods as methods_package
from nemo_launcher.adapters.settings import WHERE, Settings, type_of
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.files.values import below

WITHOUT_BLOCK = "ia3"
"""The method of a configuration without `adapter_tuning`, as in NeMo 1.20."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMethod:
    """A way to adapt a frozen model."""

    settings: type[Settings]
    """Its settings; their `type` is the method's name."""
    layer: str
    """`module:function` with the adapters' torch module: function(settings, site, sizes) makes one adapter."""
    title: str
    """What messages call what it trains, in the plural."""
    scheme: str | None = None
    """NeMo's `peft_scheme` for it, in archives of NeMo 1.21 and later."""
    section: str = "adapter_tuning"
    """The section of `peft` that holds its settings in such an archive."""

    @property
    def name(self) -> str:
        """The value of `adapter_tuning.type`."""
        return type_of(self.settings)

    @property
    def has_block(self) -> bool:
        """Whether it is chosen by an `adapter_tuning` block."""
        return self.name != WITHOUT_BLOCK


_METHODS: dict[str, AdapterMethod] = {}


def register(method: AdapterMethod) -> AdapterMethod:
    """Make a method known by its name. Raises ValueError when the name is taken."""
    if method.name in _METHODS:
        raise ValueError(f"an adapter method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


@functools.cache
def _load() -> None:
    for folder in pkgutil.iter_modules(methods_package.__path__):
        importlib.import_module(f"{methods_package.__name__}.{folder.name}.config")


def methods() -> Mapping[str, AdapterMethod]:
    """Return every method by its name."""
    _load()
    return _METHODS


def settings_by_type() -> dict[str, type[Settings]]:
    """Return the settings of the methods that `adapter_tuning.type` chooses from."""
    return {name: method.settings for name, method in methods().items() if method.has_block}


def method_of(model_config: Mapping[str, object]) -> AdapterMethod:
    """Return the method that an adapter's configuration names: `adapter_tuning.type`, or IA3 without that block.

    Source of the rule: NeMo 1.20's IA3 configurations hold no `adapter_tuning`.
    """
    block = below(model_config, "adapter_tuning")
    if not block:
        return methods()[WITHOUT_BLOCK]
    name = str(block.get("type"))
    if name not in settings_by_type():
        fix = did_you_mean(name, sorted(settings_by_type()))
        raise UserError(Problem(f"{WHERE}.type", f"unknown adapter type {name!r}", fix))
    return methods()[name]


def settings_of(model_config: Mapping[str, object], where: str = WHERE) -> Settings:
    """Return the settings of an adapter's configuration. Raises UserError with all that is wrong in them."""
    return method_of(model_config).settings.from_block(below(model_config, "adapter_tuning") or None, where)


def other_words() -> dict[str, str]:
    """Return what other programs call the settings -> the settings."""
    return {word: name for method in methods().values() for word, name in method.settings.OTHER_WORDS.items()}
