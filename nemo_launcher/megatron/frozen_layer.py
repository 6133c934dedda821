# SPDX-License-Identifier: Apache-2.0
"""Megatron-core layers made of parts whose weights never train, and which of them are computed a second time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_launcher.megatron.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.megatron.frozen_mlp import FrozenMLP
from nemo_launcher.megatron.frozen_norm import FrozenNorm
from nemo_launcher.megatron.recompute import recomputed
from nemo_launcher.megatron.seeded_dropout import current_dropout_seed, dropout_seed


class FrozenLayer(TransformerLayer):
    """Megatron-core's layer. recomputes: the backward pass starts from its input and computes the rest again."""

    recomputes = False

    def forward(
        self, hidden_states: Tensor, *args: object, context: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, hidden]; returns it behind the layer, and the context."""
        if not (self.recomputes and torch.is_grad_enabled()):
            return self.compute(hidden_states, *args, context=context, **kwargs)
        seed = current_dropout_seed()

        def again(hidden: Tensor, *contexts: Tensor) -> Tensor:
            with dropout_seed(seed):
                output, _ = self.compute(hidden, *args, context=next(iter(contexts), None), **kwargs)
            return output

        inputs = (hidden_states,) if context is None else (hidden_states, context)
        return recomputed(again, *inputs), context

    def compute(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Run Megatron-core's layer once; a layer that recomputes runs it twice, the second time in another thread."""
        output: tuple[Tensor, Tensor | None] = super().forward(*args, **kwargs)
        return output


def recompute_layers(
    layers: Iterable[TransformerLayer], granularity: str | None, method: str | None, count: int | None
) -> None:
    """Choose the layers of a pipeline stage that recompute, by NeMo's `activations_checkpoint_*`.

    granularity: `full`, or `selective`, which asks for attention alone: its probabilities are never kept here. method:
    `uniform`, all layers; `block`, the first `count` layers.
    """
    for number, layer in enumerate(layers):
        layer.recomputes = granularity == "full" and (method == "uniform" or number < (count or 0))


def use_frozen_parts(spec: ModuleSpec) -> None:
    """Let a Megatron-core layer, its linear layers, feed-forward and norms be the frozen ones."""
    spec.module, layer_submodules = FrozenLayer, spec.submodules
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
