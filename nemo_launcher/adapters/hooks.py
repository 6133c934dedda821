# SPDX-License-Identifier: Apache-2.0
"""Attaching an adapter to a site of a frozen Megatron-core layer, and detaching it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemo_launcher.adapters.sites import Action, Site, absent_sites
from nemo_launcher.megatron.experts import FrozenExperts
from nemo_launcher.megatron.self_attention import KeyValueScaling

Projected = tuple[Tensor, Tensor | None]
"""The result of Megatron-core's projections: the output, and the bias to add later."""


def has_site(layer: TransformerLayer, site: Site) -> bool:
    """Return whether a layer has a site: only T5 decoders have cross-attention, and experts have no inner sites."""
    has_cross_attention = isinstance(layer.cross_attention, KeyValueScaling)
    return site not in absent_sites(has_cross_attention=has_cross_attention, has_experts=has_experts(layer))


def has_experts(layer: TransformerLayer) -> bool:
    """Return whether a layer has several feed-forwards instead of one."""
    return isinstance(layer.mlp, FrozenExperts)


def attach(layer: TransformerLayer, site: Site, name: str, adapter: nn.Module) -> Callable[[], object]:
    """Attach `adapter` to a site of `layer` and register it there as a submodule `name`.

    Its path is `<layer>[.self_attention|.cross_attention|.mlp].adapter_layer.<name>`, as in NeMo. Returns a function
    that detaches it; the caller resets `layer.has_adapters`.
    """
    layer.has_adapters = True
    owner = layer.get_submodule(site.module_path)
    if not hasattr(owner, "adapter_layer"):
        owner.adapter_layer = nn.ModuleDict()
    owner.adapter_layer[name] = adapter
    stop_using = _use(layer, owner, site, adapter)

    def detach() -> None:
        stop_using()
        del owner.adapter_layer[name]
        if not owner.adapter_layer:
            del owner.adapter_layer

    return detach


def _use(layer: TransformerLayer, owner: Any, site: Site, adapter: nn.Module) -> Callable[[], object]:
    """Let the site's computation use `adapter`; return a function that undoes it."""
    if site.action is Action.REPLACE:
        owner.scalings[site.target] = adapter
        return lambda: owner.scalings.pop(site.target)
    whole = site is Site.MLP_OUTPUT and has_experts(layer)
    target = layer.mlp if whole else layer.get_submodule(site.target)
    if site.action is Action.ADD:
        return _add_to_output(target, adapter)
    if site.action is Action.BESIDE:
        return _add_beside(target, adapter)
    target.prefixes.append(adapter)
    return lambda: target.prefixes.remove(adapter)


def _add_to_output(projection: nn.Module, adapter: nn.Module) -> Callable[[], None]:
    def hook(_module: nn.Module, _inputs: object, outputs: Projected) -> Projected:
        output, bias = outputs
        return adapter(output) + output, bias

    return projection.register_forward_hook(hook).remove


def _add_beside(projection: nn.Module, adapter: nn.Module) -> Callable[[], None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], outputs: Projected) -> Projected:
        output, bias = outputs
        return output + adapter(inputs[0], output), bias

    return projection.register_forward_hook(hook).remove
