# SPDX-License-Identifier: Apache-2.0
"""Megatron-core layers made of frozen parts, with optional recomputation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemo_launcher.megatron.experts import FrozenExperts
from nemo_launcher.megatron.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.megatron.frozen_mlp import FrozenMLP
from nemo_launcher.megatron.frozen_norm import FrozenNorm, FrozenRMSNorm
from nemo_launcher.megatron.fused import add_rms_norm
from nemo_launcher.megatron.layer_config import LayerConfig
from nemo_launcher.megatron.recompute import recomputed
from nemo_launcher.megatron.seeded_dropout import current_dropout_seed, dropout_seed
from nemo_launcher.megatron.variation import PLAIN

Projected = tuple[Tensor, Tensor | None]
"""The output of a sub-layer, and the bias to add to it."""


class FrozenLayer(TransformerLayer):
    """Megatron-core's layer, which runs without gradients if nothing in or below it trains.

    has_adapters: whether adapters are attached to it. recomputes: the backward pass recomputes the layer from its
    input.
    """

    has_adapters = False
    recomputes = False

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        variation = config.variation if isinstance(config, LayerConfig) else PLAIN
        self.is_parallel = bool(variation.is_parallel)
        # Whether outputs of sub-layers are added to the residual as they are.
        self.adds_plainly = variation.norm_place is None and variation.residual_multiplier is None
        for name, add in (("self_attn", self.self_attn_bda), ("mlp", self.mlp_bda)):
            norm = None
            if variation.norm_place is not None:
                norm = FrozenNorm(config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
                self.add_module(f"post_{name}_layernorm", norm)
            if norm is not None or variation.residual_multiplier is not None:
                setattr(self, f"{name}_bda", _changed(add, self, name, variation.residual_multiplier))

    def forward(
        self, hidden_states: Tensor, *args: object, context: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's output, [s, b, hidden], and the context; hidden_states: [s, b, hidden]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._needs_gradients(hidden_states, context)):
            return self._run(hidden_states, *args, context=context, **kwargs)

    def _needs_gradients(self, hidden_states: Tensor, context: Tensor | None) -> bool:
        """Return whether the backward pass reaches this layer: adapters are in it, in a layer below, or in an encoder.

        The base is frozen, so a tensor requires a gradient only if adapters took part in it.
        """
        from_encoder = context is not None and context.requires_grad
        return self.has_adapters or hidden_states.requires_grad or from_encoder

    def _run(
        self, hidden_states: Tensor, *args: object, context: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
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
        """Run the layer. With recomputation it runs twice, the second time in another thread."""
        if self.is_parallel:
            return self._side_by_side(*args, **kwargs), None
        if self._fuses_additions():
            return self._fused(*args, **kwargs)
        output: tuple[Tensor, Tensor | None] = super().forward(*args, **kwargs)
        return output

    def _side_by_side(self, hidden_states: Tensor, attention_mask: object, **_: object) -> Tensor:
        """Return the layer's output, where attention and feed-forward both start from its input, [s, b, hidden]."""
        attended = self.self_attention(self.input_layernorm(hidden_states), attention_mask=attention_mask)
        kept = self.kept(hidden_states)
        fed_forward = self.mlp(self.pre_mlp_layernorm(kept))
        options = self.training, self.config.bias_dropout_fusion
        residual = self.self_attn_bda(*options)(attended, hidden_states, self.hidden_dropout)
        output: Tensor = self.mlp_bda(*options)(fed_forward, residual, self.hidden_dropout)
        return output

    def _fuses_additions(self) -> bool:
        """Return whether each addition to the residual is one operator with the norm that follows."""
        norm, drops = self.pre_mlp_layernorm, self.training and self.hidden_dropout > 0.0
        return isinstance(norm, FrozenRMSNorm) and norm.fuses and self.adds_plainly and not drops

    def _fused(
        self,
        hidden_states: Tensor,
        attention_mask: object,
        context: Tensor | None = None,
        context_mask: object = None,
        **_: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer with fused additions. The order of operations is megatron-core's TransformerLayer's."""
        attended = self.self_attention(self.input_layernorm(hidden_states), attention_mask=attention_mask)
        output, residual = _joined(attended), self.kept(hidden_states)
        if not isinstance(self.cross_attention, IdentityOp):
            norm = self.pre_cross_attn_layernorm
            output, residual = add_rms_norm(output, residual, norm.weight, norm.eps)
            output = _joined(self.cross_attention(output, attention_mask=context_mask, key_value_states=context))
        norm = self.pre_mlp_layernorm
        output, residual = add_rms_norm(output, residual, norm.weight, norm.eps)
        return _joined(self.mlp(output)) + residual, context

    def kept(self, hidden: Tensor) -> Tensor:
        """Return the tokens with which the layer continues after attention, [s, b, hidden]."""
        return hidden


def _joined(projected: Projected) -> Tensor:
    """Return the output of a sub-layer with its bias."""
    output, bias = projected
    return output if bias is None else output + bias


Adding = Callable[..., Callable[[Projected, Tensor, float], Tensor]]
"""Megatron-core's addition to the residual: (training, fused) -> ((output, bias), residual, dropout) -> residual."""


def _changed(add: Adding, layer: nn.Module, name: str, multiplier: float | None) -> Adding:
    """Return an addition of a sub-layer's normalized and scaled output."""

    def make(*options: object) -> Callable[[Projected, Tensor, float], Tensor]:
        def changed(outputs: Projected, residual: Tensor, dropout: float) -> Tensor:
            output = _joined(outputs)
            norm = getattr(layer, f"post_{name}_layernorm", None)
            output = output if norm is None else norm(output)
            output = output if multiplier is None else output * multiplier
            return add(*options)((output, None), residual, dropout)

        return changed

    return make


def recompute_layers(
    layers: Iterable[TransformerLayer], granularity: str | None, method: str | None, count: int | None
) -> None:
    """Select the layers of a pipeline stage that recompute, by NeMo's `activations_checkpoint_*`.

    granularity: `full`, or `selective`, which means attention only and changes nothing: its probabilities are never
    kept here. method: `uniform`, all layers; `block`, the first `count` layers.
    """
    for number, layer in enumerate(layers):
        layer.recomputes = granularity == "full" and (method == "uniform" or number < (count or 0))


def use_frozen_parts(spec: ModuleSpec, experts: int | None = None) -> None:
    """Use frozen classes for a Megatron-core layer and its linear layers, feed-forward and norms.

    experts: the number of experts (megatron.variation.Variation); None for one feed-forward.
    """
    spec.module, layer_submodules = FrozenLayer, spec.submodules
    layer_submodules.mlp = FrozenMLP if experts is None else FrozenExperts
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
