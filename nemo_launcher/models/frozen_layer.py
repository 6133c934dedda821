"""A Megatron-core layer made of parts whose weights never train."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp

from nemo_launcher.models.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.models.frozen_mlp import FrozenMLP
from nemo_launcher.models.frozen_norm import FrozenNorm


def use_frozen_parts(layer_submodules: Any) -> None:
    """Let a Megatron-core TransformerLayerSubmodules' linear layers, feed-forward and norms be the frozen ones."""
    layer_submodules.mlp = FrozenMLP
    for attention in (layer_submodules.self_attention, layer_submodules.cross_attention):
        submodules = getattr(attention, "submodules", None)
        for name in ("linear_qkv", "linear_q", "linear_kv", "linear_proj"):
            if getattr(submodules, name, None) is ColumnParallelLinear:
                setattr(submodules, name, FrozenColumnParallelLinear)
            elif getattr(submodules, name, None) is RowParallelLinear:
                setattr(submodules, name, FrozenRowParallelLinear)
    for name in ("input_layernorm", "pre_cross_attn_layernorm", "pre_mlp_layernorm"):
        if getattr(layer_submodules, name) is not IdentityOp:
            setattr(layer_submodules, name, FrozenNorm)
