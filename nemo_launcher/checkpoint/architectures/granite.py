# SPDX-License-Identifier: Apache-2.0
"""Granite 3: a Llama whose embedding, residual, attention scores and logits have factors."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings
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


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "embedding_multiplier": number(config, "embedding_multiplier"),
        "residual_multiplier": number(config, "residual_multiplier"),
        "softmax_scale": number(config, "attention_multiplier"),
        "logits_divisor": number(config, "logits_scaling"),
    }


GRANITE = Architecture(
    name="GraniteForCausalLM",
    kind="granite",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=(
        *("rms_norm_eps", "rope_theta"),
        *("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    ),
    flags=("tie_word_embeddings", "attention_bias", "mlp_bias"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout"),
    fixed={"hidden_act": ("silu",)},
    problems=rotary_problems,
    settings=_settings,
    weights=WEIGHTS,
)
