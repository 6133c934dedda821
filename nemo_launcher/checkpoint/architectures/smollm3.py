# SPDX-License-Identifier: Apache-2.0
"""SmolLM3: a Llama with layers that have no rotary positions."""

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
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section


def _problems(config: Section) -> list[str]:
    rotated, layers = config.get("no_rope_layers"), config.get("num_hidden_layers")
    problems = rotary_problems(config) + window_problems(config)
    if rotated is not None and not (isinstance(rotated, list) and all(value in (0, 1) for value in rotated)):
        problems.append(f"no_rope_layers {str(rotated)[:60]}")
    elif isinstance(rotated, list) and rotated and len(rotated) != layers:
        problems.append(f"no_rope_layers with {len(rotated)} entries for {layers} layers")
    return problems


def _settings(config: Section) -> Settings:
    rotated = config.get("no_rope_layers")  # 1: the layer has rotary positions
    without = [1 - int(value) for value in rotated] if isinstance(rotated, list) else []
    windows = window_settings(config) if config.get("use_sliding_window") else {}
    return decoder_settings(config) | windows | ({"no_rope_freq": without} if any(without) else {})


SMOLLM3 = Architecture(
    name="SmolLM3ForCausalLM",
    kind="smollm3",
    family="llama",
    counts=COUNTS,
    optional_counts=(*OPTIONAL_COUNTS, "no_rope_layer_interval"),
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "sliding_window", "layer_types", "no_rope_layers", "max_window_layers"),
    fixed={"hidden_act": ("silu",), "pretraining_tp": (1, 2)},
    problems=_problems,
    settings=_settings,
    weights=WEIGHTS,
)
