# SPDX-License-Identifier: Apache-2.0
"""The places in a frozen Megatron-core layer that an adapter can act on."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemo_launcher.megatron.attention import ScalesKeysAndValues


class Site(enum.Enum):
    """A place in a transformer layer, by the tensor that passes there.

    At an output site the adapter's result is added to the tensor; at a scaling site it takes the tensor's place.
    Output sites lie before the projection's bias and the residual connection are added, keys and values before rotary
    positions and the cache. Sources: NeMo 1.20 megatron/transformer.py, attention.py, mlp.py; NeMo 1.23
    megatron/adapters/mcore_mixins.py.
    """

    ATTENTION_OUTPUT = "attention_output"  # [s, b, hidden]
    MLP_OUTPUT = "mlp_output"  # [s, b, hidden]
    KEY = "key"  # [s, b, groups * head_dim]
    VALUE = "value"  # [s, b, groups * head_dim]
    CROSS_KEY = "cross_key"  # [s, b, heads * head_dim], s: of the encoder
    CROSS_VALUE = "cross_value"  # [s, b, heads * head_dim], s: of the encoder
    MLP_ACTIVATION = "mlp_activation"  # [s, b, ffn]

    @property
    def module_path(self) -> str:
        """The submodule of a layer that keeps adapters of this site."""
        return _MODULES.get(self, ("", ""))[0]

    @property
    def nemo_path(self) -> str:
        """The name that NeMo gives this submodule."""
        return _MODULES.get(self, ("", ""))[1]


_MODULES = {
    Site.KEY: ("self_attention", "self_attention"),
    Site.VALUE: ("self_attention", "self_attention"),
    Site.CROSS_KEY: ("cross_attention", "inter_attention"),
    Site.CROSS_VALUE: ("cross_attention", "inter_attention"),
    Site.MLP_ACTIVATION: ("mlp", "mlp"),
}


def has_site(layer: TransformerLayer, site: Site) -> bool:
    """Return whether a layer has this place: only a T5 decoder's has cross-attention."""
    return site not in (Site.CROSS_KEY, Site.CROSS_VALUE) or isinstance(layer.cross_attention, ScalesKeysAndValues)


def attach(layer: TransformerLayer, site: Site, name: str, adapter: nn.Module) -> None:
    """Let `adapter` act at a site of `layer` (a megatron-core TransformerLayer) and own it there under `name`.

    It lies at `<layer>[.self_attention|.cross_attention|.mlp].adapter_layer.<name>`, as in NeMo.
    """
    owner = layer.get_submodule(site.module_path)
    if not hasattr(owner, "adapter_layer"):
        owner.adapter_layer = nn.ModuleDict()
    adapters = owner.get_submodule("adapter_layer")
    adapters.add_module(name, adapter)
    _ATTACH[site](layer, adapter)


def _add_to_output(projection: nn.Module, adapter: nn.Module) -> None:
    def hook(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        output, bias = outputs
        return adapter(output) + output, bias

    projection.register_forward_hook(hook)


_ATTACH: dict[Site, Callable[[TransformerLayer, nn.Module], object]] = {
    Site.ATTENTION_OUTPUT: lambda layer, adapter: _add_to_output(layer.self_attention.linear_proj, adapter),
    Site.MLP_OUTPUT: lambda layer, adapter: _add_to_output(layer.mlp.linear_fc2, adapter),
    Site.MLP_ACTIVATION: lambda layer, adapter: layer.mlp.scalings.update(activation=adapter),
    Site.KEY: lambda layer, adapter: layer.self_attention.scalings.update(key=adapter),
    Site.VALUE: lambda layer, adapter: layer.self_attention.scalings.update(value=adapter),
    Site.CROSS_KEY: lambda layer, adapter: layer.cross_attention.scalings.update(key=adapter),
    Site.CROSS_VALUE: lambda layer, adapter: layer.cross_attention.scalings.update(value=adapter),
}
