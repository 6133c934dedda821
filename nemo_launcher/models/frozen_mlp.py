"""Megatron-core's feed-forward for weights that never train."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.models.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.models.recompute import recomputed


class FrozenMLP(MLP):
    """Keeps the output of its first projection alone; the activation is cheaper to compute again than to keep.

    scalings: "activation" names an optional module that scales what goes into the second projection.
    """

    def __init__(self, config: TransformerConfig) -> None:
        parts = MLPSubmodules(linear_fc1=FrozenColumnParallelLinear, linear_fc2=FrozenRowParallelLinear)
        super().__init__(config, parts)
        self.scalings: dict[str, nn.Module] = {}  # a plain dict: the modules are owned elsewhere

    def forward(self, hidden_states: Tensor, per_token_scale: None = None, **_: Any) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, hidden]; returns the same shape, and the bias that is still to be added."""
        projected, bias = self.linear_fc1(hidden_states)
        scaling = self.scalings.get("activation")

        def activate(projected: Tensor) -> Tensor:
            hidden = self._activation(projected if bias is None else projected + bias)
            return hidden if scaling is None else scaling(hidden)

        parameters = () if scaling is None else scaling.parameters()
        output: tuple[Tensor, Tensor | None] = self.linear_fc2(recomputed(activate, projected, parameters=parameters))
        return output

    def _activation(self, projected: Tensor) -> Tensor:
        """projected: [s, b, ffn], or gate and value [s, b, 2 * ffn]; returns [s, b, ffn]."""
        if not self.config.gated_linear_unit:
            return self.activation_func(projected)
        gate, value = projected.chunk(2, dim=-1)
        return self.activation_func(gate) * value
