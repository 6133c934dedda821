# SPDX-License-Identifier: Apache-2.0
"""StableLM: a Llama with LayerNorm and partial rotary positions.

In some, attention and feed-forward stand side by side, and each head of queries and keys has a norm of its own.
"""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import (
    Architecture,
    Layout,
    Settings,
    Source,
    Weights,
    same,
)
from nemo_launcher.checkpoint.architectures.llama import (
    COUNTS,
    DIVISIONS,
    OPTIONAL_COUNTS,
    ROTARY,
    WEIGHTS,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number, whole

_WEIGHTS: Weights = WEIGHTS | {
    "decoder.layers.*.pre_mlp_layernorm": same(
        "model.layers.*.post_attention_layernorm", "model.layers.*.input_layernorm"
    ),
    **{
        f"decoder.layers.*.self_attention.{name}_layernorm": Source(
            (f"model.layers.*.self_attn.{name}_layernorm.norms.@",), Layout.EACH_HEAD
        )
        for name in "qk"
    },
}


_MOST_NORMS = 1 << 16
"""Norms of heads in all layers together; a StableLM 2 with 12B has 1,600."""


def _problems(config: Section) -> list[str]:
    """Return the unsupported settings: those of rotary positions, and so many norms that no model has them."""
    heads = whole(config, "num_attention_heads") or 0
    norms = (whole(config, "num_hidden_layers") or 0) * (heads + (whole(config, "num_key_value_heads") or heads))
    many = [f"qk_layernorm with {norms:,} norms of heads"] if config.get("qk_layernorm") and norms > _MOST_NORMS else []
    return rotary_problems(config) + many


def _settings(config: Section) -> Settings:
    norms = {"qk_layernorm": True, "qk_layernorm_width": "each_head"} if config.get("qk_layernorm") else {}
    return (
        decoder_settings(config)
        | norms
        | {
            "normalization": "layernorm",
            "layernorm_epsilon": number(config, "layer_norm_eps"),
            "qkv_bias": bool(config.get("use_qkv_bias")),
            "parallel_attention": bool(config.get("use_parallel_residual")),
        }
    )


STABLELM = Architecture(
    name="StableLmForCausalLM",
    kind="stablelm",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS[::2],
    numbers=("layer_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_qkv_bias", "use_parallel_residual", "qk_layernorm"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "hidden_dropout"),
    fixed={"hidden_act": ("silu",)},
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
