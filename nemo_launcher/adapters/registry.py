# SPDX-License-Identifier: Apache-2.0
"""The registry of adapter methods: folders in adapters/methods whose config.py registers them. Imports no torch.

All else that differs between methods is read from here: the schema of `adapter_tuning`, the estimate at launch, checks,
archives, and the conformance tests.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

import nemo_launcher.adapters.methods as methods_package
from nemo_launcher.adapters.settings import BLOCK, WHERE, WITHOUT_BLOCK, Settings, type_of
from nemo_launcher.config.layers import Layers, WithLayers
from nemo_launcher.config.load import load_checked
from nemo_launcher.config.schema import check
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.files.values import below


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMethod:
    """A method to adapt a frozen model."""

    settings: type[Settings]
    """The settings class; its `type` is the method's name."""
    layer: str
    """`module:function` of the function that makes one adapter: function(settings, site, sizes) -> nn.Module."""
    title: str
    """The name of the adapters in messages, in the plural."""
    scheme: str | None = None
    """NeMo's `peft_scheme` of the method, in archives of NeMo 1.21 and later."""
    section: str = "adapter_tuning"
    """The section of `peft` with its settings in such an archive; without `adapter_tuning`, of `model` too."""

    @property
    def name(self) -> str:
        """The value of `adapter_tuning.type`."""
        return type_of(self.settings)

    @property
    def has_block(self) -> bool:
        """Whether an `adapter_tuning` block selects the method."""
        return self.name != WITHOUT_BLOCK

    @property
    def block(self) -> str:
        """The section of `model` with the settings."""
        return BLOCK if self.has_block else self.section


_METHODS: dict[str, AdapterMethod] = {}


def register(method: AdapterMethod) -> AdapterMethod:
    """Register a method under its name. Raises ValueError if the name is taken."""
    if method.name in _METHODS:
        raise ValueError(f"an adapter method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


@functools.cache
def _load() -> None:
    for folder in pkgutil.iter_modules(methods_package.__path__):
        importlib.import_module(f"{methods_package.__name__}.{folder.name}.config")
    in_order = sorted(_METHODS.items(), key=lambda item: item[1].settings.__module__)
    _METHODS.clear()
    _METHODS.update(in_order)  # whichever module was imported first


def methods() -> Mapping[str, AdapterMethod]:
    """Return all methods by name."""
    _load()
    return _METHODS


def settings_by_type() -> dict[str, type[Settings]]:
    """Return the settings classes that `adapter_tuning.type` can select."""
    return {name: method.settings for name, method in methods().items() if method.has_block}


def method_of(model_config: Mapping[str, object]) -> AdapterMethod:
    """Return the method of an adapter's configuration: `adapter_tuning.type`, or IA3 without that block.

    Source of the rule: IA3 configurations of NeMo 1.20 have no `adapter_tuning`. Raises UserError for an unknown type.
    """
    block = below(model_config, BLOCK)
    if not block:
        return methods()[WITHOUT_BLOCK]
    name = str(block.get("type"))
    if name not in settings_by_type():
        fix = did_you_mean(name, sorted(settings_by_type()))
        raise UserError(Problem(f"{WHERE}.type", f"unknown adapter type {name!r}", fix))
    return methods()[name]


def settings_of(model_config: Mapping[str, object], above: str = "model.") -> Settings:
    """Return the settings in an adapter's configuration. Raises UserError with all problems in them.

    above: what precedes the section's name in messages.
    """
    method = method_of(model_config)
    return method.settings.from_block(below(model_config, method.block) or None, f"{above}{method.block}")


def layers_of(model_config: Mapping[str, object], above: str = "model.") -> Layers:
    """Return the layers in an adapter's configuration, whatever its other settings. Raises UserError if invalid."""
    block = method_of(model_config).block
    given = {key: value for key, value in below(model_config, block).items() if key == "layers"}
    problems = check(given, WithLayers, f"{above}{block}")
    if problems:
        raise UserError(problems)
    return load_checked(given, WithLayers).section.layers


def setting_aliases() -> dict[str, str]:
    """Return the names that other programs use for settings, with the settings' names here."""
    return {word: name for method in methods().values() for word, name in method.settings.ALIASES.items()}
