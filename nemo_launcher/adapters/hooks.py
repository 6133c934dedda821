# SPDX-License-Identifier: Apache-2.0
"""Attaching an adapter to a site of a frozen Megatron-core layer."""

from __future__ import annotations

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemo_launcher.adapters.sites import Action, Site
from nemo_launcher.megatron.attention import KeyValueScaling

Projected = tuple[Tensor, Tensor | None]
"""The result of Megatron-core's projections: the output, and the bias to add later."""


def has_site(layer: TransformerLayer, site: Site) -> bool:
    """Return whether a layer has a site: only T5 decoder layers have cross-attention."""
    return not site.is_cross or isinstance(layer.cross_attention, KeyValueScaling)


def attach(layer: TransformerLayer, site: Site, name: str, adapter: nn.Module) -> None:
    """Attach `adapter` to a site of `layer` and register it there as a submodule `name`.

    Its path is `<layer>[.self_attention|.cross_attention|.mlp].adapter_layer.<name>`, as in NeMo.
    """
    layer.has_adapters = True
    owner = layer.get_submodule(site.module_path)
    if not hasattr(owner, "adapter_layer"):
        owner.adapter_layer = nn.ModuleDict()
    owner.adapter_layer[name] = adapter
    if site.action is Action.REPLACE:
        owner.scalings[site.target] = adapter
        return
    target = layer.get_submodule(site.target)
    if site.action is Action.ADD:
        _add_to_output(target, adapter)
    elif site.action is Action.BESIDE:
        _add_beside(target, adapter)
    else:
        target.prefixes.append(adapter)


def _add_to_output(projection: nn.Module, adapter: nn.Module) -> None:
    def hook(_module: nn.Module, _inputs: object, outputs: Projected) -> Projected:
        output, bias = outputs
        return adapter(output) + output, bias

    projection.register_forward_hook(hook)


def _add_beside(projection: nn.Module, adapter: nn.Module) -> None:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], outputs: Projected) -> Projected:
        output, bias = outputs
        return output + adapter(inputs[0], output), bias

    projection.register_forward_hook(hook)
