# SPDX-License-Identifier: Apache-2.0
"""Starcoder2: LayerNorm, biases and a feed-forward without a gate."""

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
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section, number, text

_WEIGHTS: Weights = (
    OUTSIDE
    | ATTENTION
    | NORMS
    | {
        "decoder.layers.*.mlp.linear_fc1": same("model.layers.*.mlp.c_fc"),
        "decoder.layers.*.mlp.linear_fc2": same("model.layers.*.mlp.c_proj"),
    }
)


def _settings(config: Section) -> Settings:
    return (
        decoder_settings(config)
        | {
            "normalization": "layernorm",
            "layernorm_epsilon": number(config, "norm_epsilon"),
            **ACTIVATIONS[text(config, "hidden_act") or "gelu_pytorch_tanh"],
            "bias": bool(config.get("use_bias", True)),
        }
        | window_settings(config, all_layers=True)
    )


STARCODER2 = Architecture(
    name="Starcoder2ForCausalLM",
    kind="starcoder2",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("norm_epsilon", "rope_theta"),
    flags=("tie_word_embeddings", "use_bias"),
    divisions=DIVISIONS,
    others=(
        *(*ROTARY, "attention_dropout", "residual_dropout", "embedding_dropout", "sliding_window", "layer_types"),
        # of an earlier architecture, which transformers does not read
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "scale_attn_weights", "layer_norm_epsilon"),
    ),
    fixed={
        "hidden_act": tuple(ACTIVATIONS),
        "activation_function": ("gelu_pytorch_tanh", "gelu"),  # not read by transformers
        "norm_type": ("layer_norm",),
        "mlp_type": ("default",),
    },
    problems=lambda config: rotary_problems(config) + window_problems({**config, "layer_types": None}),
    settings=_settings,
    weights=_WEIGHTS,
)
