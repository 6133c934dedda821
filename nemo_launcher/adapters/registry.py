# SPDX-License-Identifier: Apache-2.0
"""The adapter methods by name. A method is one file that registers itself; nothing else names it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

import nemo_launcher.adapters.methods as methods_package
from nemo_launcher.adapters.sites import Site
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.families.layer_shape import LayerShape


@dataclass(frozen=True, slots=True)
class Placement:
    """One adapter of a method: the name NeMo gives it in a state dict, and the site in the layer it acts on."""

    name: str
    site: Site


@dataclass(frozen=True, slots=True)
class AdapterMethod:
    """A way to adapt a frozen model.

    name: the value of `adapter_tuning.type` (IA3 has no such block). placements: its adapters in each layer; one whose
    site a layer lacks is left out. build: makes one adapter from the `adapter_tuning` block, its site and the layers'
    shape; raises UserError on bad settings. split_dimensions: the tensors of an adapter that tensor-parallel ranks
    share, and along which dimension; each rank has all of the others.
    """

    name: str
    placements: tuple[Placement, ...]
    build: Callable[[Mapping[str, Any], Site, LayerShape], nn.Module]
    split_dimensions: Mapping[str, int] = field(default_factory=dict)


_METHODS: dict[str, AdapterMethod] = {}


def register(method: AdapterMethod) -> AdapterMethod:
    """Make a method known by its name. Raises ValueError when the name is taken."""
    if method.name in _METHODS:
        raise ValueError(f"an adapter method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def method_of(model_config: Mapping[str, Any]) -> AdapterMethod:
    """Return the method that an adapter's configuration names: `adapter_tuning.type`, or IA3 without that block.

    Source of the rule: NeMo 1.20's IA3 configurations hold no `adapter_tuning`.
    """
    for module in pkgutil.iter_modules(methods_package.__path__):
        importlib.import_module(f"{methods_package.__name__}.{module.name}")
    block = model_config.get("adapter_tuning")
    name = str(block.get("type")) if block else "ia3"
    if name not in _METHODS:
        names = sorted(_METHODS.keys() - {"ia3"})
        raise UserError(
            Problem("model.adapter_tuning.type", f"unknown adapter type {name!r}", did_you_mean(name, names))
        )
    return _METHODS[name]
