# SPDX-License-Identifier: Apache-2.0
"""Mistral, and Ministral 3's language model."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings
from nemo_launcher.checkpoint.architectures.llama import (
    COUNTS,
    DIVISIONS,
    OPTIONAL_COUNTS,
    ROTARY,
    WEIGHTS,
    decoder_settings,
    limited,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section, below, number, whole


def _problems(config: Section) -> list[str]:
    return rotary_problems(config) + window_problems({**config, "layer_types": None})


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | window_settings(config, all_layers=True)


MISTRAL = Architecture(
    name="MistralForCausalLM",
    kind="mistral",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_sliding_window"),
    divisions=DIVISIONS,
    # transformers ignores use_sliding_window and layer_types
    others=(*ROTARY, "attention_dropout", "sliding_window", "layer_types"),
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    problems=_problems,
    settings=_settings,
    weights=WEIGHTS,
)


def _ministral_settings(config: Section) -> Settings:
    """Queries grow with the position (`llama_4_scaling_beta`), from the original length on, which is the limit here."""
    rope = below(config, "rope_parameters")
    settings = _settings(config)
    return limited(settings, whole(rope, "original_max_position_embeddings")) if _grows(config) else settings


def _grows(config: Section) -> bool:
    return bool(number(below(config, "rope_parameters"), "llama_4_scaling_beta"))


MINISTRAL3 = Architecture(
    name="Ministral3ForCausalLM",
    kind="ministral3",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings",),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "sliding_window", "layer_types"),
    fixed={"hidden_act": ("silu",)},
    problems=_problems,
    settings=_ministral_settings,
    weights=WEIGHTS,
)
