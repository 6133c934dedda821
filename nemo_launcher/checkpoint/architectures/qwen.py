# SPDX-License-Identifier: Apache-2.0
"""Qwen2 (also 2.5), with biases of queries, keys and values, and Qwen3, with norms of queries and keys."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings
from nemo_launcher.checkpoint.architectures.llama import (
    COUNTS,
    DIVISIONS,
    HEAD_NORMS,
    OPTIONAL_COUNTS,
    ROTARY,
    WEIGHTS,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section

_WINDOW = ("sliding_window", "max_window_layers", "layer_types")


def _problems(config: Section) -> list[str]:
    return rotary_problems(config) + window_problems(config)


def _qwen2_settings(config: Section) -> Settings:
    return decoder_settings(config) | {"bias": False, "qkv_bias": True} | window_settings(config)


def _qwen3_settings(config: Section) -> Settings:
    return decoder_settings(config) | {"qk_layernorm": True} | window_settings(config)


QWEN2 = Architecture(
    name="Qwen2ForCausalLM",
    kind="qwen2",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_sliding_window"),
    divisions=DIVISIONS,
    others=(*ROTARY, *_WINDOW, "attention_dropout"),
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "use_mrope": (False,)},
    problems=_problems,
    settings=_qwen2_settings,
    weights=WEIGHTS,
)
QWEN3 = Architecture(
    name="Qwen3ForCausalLM",
    kind="qwen3",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_sliding_window", "attention_bias"),
    divisions=DIVISIONS[1:],
    others=(*ROTARY, *_WINDOW, "attention_dropout"),
    fixed={"hidden_act": ("silu",)},
    problems=_problems,
    settings=_qwen3_settings,
    weights=WEIGHTS | HEAD_NORMS,
)
