# SPDX-License-Identifier: Apache-2.0
"""StableLM: a Llama with LayerNorm and partial rotary positions; in some, attention and feed-forward side by side."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    COUNTS,
    DIVISIONS,
    OPTIONAL_COUNTS,
    ROTARY,
    WEIGHTS,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number

_WEIGHTS: Weights = WEIGHTS | {
    "decoder.layers.*.pre_mlp_layernorm": same(
        "model.layers.*.post_attention_layernorm", "model.layers.*.input_layernorm"
    )
}


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_eps"),
        "qkv_bias": bool(config.get("use_qkv_bias")),
        "parallel_attention": bool(config.get("use_parallel_residual")),
    }


STABLELM = Architecture(
    name="StableLmForCausalLM",
    kind="stablelm",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS[::2],
    numbers=("layer_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_qkv_bias", "use_parallel_residual"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "hidden_dropout"),
    fixed={"hidden_act": ("silu",), "qk_layernorm": (False,)},
    problems=rotary_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
