# SPDX-License-Identifier: Apache-2.0
"""Nemotron (also Minitron): zero-centered LayerNorm, squared ReLU and partial rotary positions."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import ACTIVATIONS, Architecture, Settings, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    ATTENTION,
    COUNTS,
    DIVISIONS,
    NORMS,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number, text

_WEIGHTS: Weights = (
    OUTSIDE
    | ATTENTION
    | NORMS
    | {
        "decoder.layers.*.mlp.linear_fc1": same("model.layers.*.mlp.up_proj"),
        "decoder.layers.*.mlp.linear_fc2": same("model.layers.*.mlp.down_proj"),
    }
)


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "normalization": "layernorm1p",
        "layernorm_epsilon": number(config, "norm_eps"),
        **ACTIVATIONS[text(config, "hidden_act") or "relu2"],
    }


NEMOTRON = Architecture(
    name="NemotronForCausalLM",
    kind="nemotron",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("norm_eps", "rope_theta", "partial_rotary_factor", "rope_percent"),
    flags=("tie_word_embeddings", "attention_bias", "mlp_bias"),
    divisions=DIVISIONS[1:],
    others=(*ROTARY, "attention_dropout"),
    fixed={"hidden_act": tuple(ACTIVATIONS)},
    problems=rotary_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
