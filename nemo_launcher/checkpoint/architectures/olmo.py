# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 and 3: norms behind attention and feed-forward, and norms over all heads of queries and of keys.

OLMo 3 has windows in most layers, which have rotary positions of their own.
"""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    ATTENTION,
    COUNTS,
    DIVISIONS,
    HEAD_NORMS,
    MLP,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import layered_problems, layered_settings, rotary_problems
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section

_WEIGHTS: Weights = (
    OUTSIDE
    | ATTENTION
    | HEAD_NORMS
    | MLP
    | {
        "decoder.layers.*.post_self_attn_layernorm": same("model.layers.*.post_attention_layernorm"),
        "decoder.layers.*.post_mlp_layernorm": same("model.layers.*.post_feedforward_layernorm"),
    }
)


def _settings(config: Section) -> Settings:
    own = {"qk_layernorm": True, "qk_layernorm_width": "all_heads", "sublayer_norms": "after"}
    return decoder_settings(config) | own


def _olmo3_settings(config: Section) -> Settings:
    full, local = layered_settings(config)
    return _settings(full) | window_settings(config, always=bool(local)) | local


OLMO2 = Architecture(
    name="Olmo2ForCausalLM",
    kind="olmo2",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "attention_bias"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout"),
    fixed={"hidden_act": ("silu",)},
    problems=rotary_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
OLMO3 = Architecture(
    name="Olmo3ForCausalLM",
    kind="olmo3",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "attention_bias"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "sliding_window", "layer_types"),
    fixed={"hidden_act": ("silu",)},
    problems=lambda config: layered_problems(config) + window_problems(config),
    settings=_olmo3_settings,
    weights=_WEIGHTS,
)
