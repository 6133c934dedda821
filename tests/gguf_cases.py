# SPDX-License-Identifier: Apache-2.0
"""Models of each architecture of GGUF files, with their settings in transformers and the keys of their files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from nemo_launcher.checkpoint.gguf_tokens import AS_LLAMA_CPP
from nemo_launcher.requirements import is_at_least
from tests.gguf_models import SIZES, random_model, write_model
from tests.versions import hf_config

Case = tuple[str, str, dict[str, Any], dict[str, Any]]


def heads(size: int) -> dict[str, int]:
    return {"attention.key_length": size, "attention.value_length": size}


def window(size: int) -> dict[str, int]:
    return {"attention.sliding_window": size}


def rope(base: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **more}}


def layered(local: float = 10000.0, **full: Any) -> dict[str, Any]:
    """Return Gemma 3's parameters; full: those of layers without a window."""
    whole = {"rope_type": "default", "rope_theta": 1e6, **full}
    return {
        "rope_parameters": {
            "full_attention": whole,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def small(size: int = 16, **more: Any) -> dict[str, Any]:
    """Return the settings of a Gemma with heads of this size."""
    return {"head_dim": size, "query_pre_attn_scalar": size, "sliding_window": 8, **more}


SHORT, FAR = np.linspace(1, 3, 6, dtype=np.float32), np.linspace(2, 30, 6, dtype=np.float32)
FACTORS = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": FAR}
MAGNITUDE = math.sqrt(1 + math.log(4) / math.log(64))
LONGROPE = rope(10000.0, partial_rotary_factor=0.75, original_max_position_embeddings=64) | {
    "original_max_position_embeddings": 64
}
LONGROPE["rope_parameters"] |= {"rope_type": "longrope", "short_factor": SHORT.tolist(), "long_factor": FAR.tolist()}
LONG_KEYS = {
    "rope.dimension_count": 12,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": MAGNITUDE,
    **window(0),
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
BASE = {"rope.freq_base": 1e6}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
LAYERS = ["full_attention", "sliding_attention"] * 2

# name -> architecture, its configuration in transformers, changes of SIZES, the file's own keys
PLAIN: dict[str, Case] = {
    "llama": ("llama", "LlamaConfig", {}, {"rope.dimension_count": 16}),
    "qwen2": ("qwen2", "Qwen2Config", {}, {}),
    "qwen3": ("qwen3", "Qwen3Config", {"head_dim": 128}, heads(128)),
    "gemma2": ("gemma2", "Gemma2Config", {"head_dim": 256, "sliding_window": 8}, {**heads(256), **window(8)}),
    "gemma3": (
        "gemma3",
        "Gemma3TextConfig",
        {"head_dim": 256, "sliding_window": 8, "num_hidden_layers": 7},
        {**heads(256), **window(8), **BASE},
    ),
    "phi3": ("phi3", "Phi3Config", {}, window(0)),
}
"""Files of which transformers reads all settings."""
CASES: dict[str, Case] = {
    "llama_biases": ("llama", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}, {"rope.dimension_count": 16}),
    "qwen2_tied": ("qwen2", "Qwen2Config", {"tie_word_embeddings": True, **rope(1e6)}, BASE),
    "qwen2_heads": ("qwen2", "Qwen2Config", {"num_attention_heads": 8, "num_key_value_heads": 1}, {}),
    "qwen3_tied": ("qwen3", "Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True, **rope(1e6)}, heads(8) | BASE),
    "qwen3_linear": (
        "qwen3",
        "Qwen3Config",
        {"head_dim": 16, "num_key_value_heads": 4, **rope(1e6, rope_type="linear", factor=8.0)},
        heads(16) | BASE | LINEAR,
    ),
    "gemma2_caps": ("gemma2", "Gemma2Config", small(**CAPS), {**heads(16), **window(8), **CAPS}),
    "gemma2_no_window": (
        "gemma2",
        "Gemma2Config",
        small(24, num_key_value_heads=4, sliding_window=400),
        {**heads(24), **window(400)},
    ),
    "gemma3_linear": (
        "gemma3",
        "Gemma3TextConfig",
        small(num_hidden_layers=7, **layered(rope_type="linear", factor=8.0)),
        {**heads(16), **window(8), **BASE, **LINEAR},
    ),
    "gemma3_no_window": (
        "gemma3",
        "Gemma3TextConfig",
        small(layer_types=["full_attention"] * 3, **layered(rope_type="linear", factor=8.0)),
        {**heads(16), **BASE, **LINEAR},
    ),
    "gemma3_pattern": (
        "gemma3",
        "Gemma3TextConfig",
        small(
            num_hidden_layers=4,
            layer_types=LAYERS,
            final_logit_softcapping=4.0,
            tie_word_embeddings=False,
            **layered(5000.0),
        ),
        {
            **heads(16),
            **window(8),
            **BASE,
            "rope.freq_base_swa": 5000.0,
            "attention.sliding_window_pattern": [False, True, False, True],
            "final_logit_softcapping": 4.0,
        },
    ),
    "phi3_window": (
        "phi3",
        "Phi3Config",
        {"sliding_window": 8, "tie_word_embeddings": True, **rope(10000.0, partial_rotary_factor=0.75)},
        {**window(8), "rope.dimension_count": 12, "rope.scaling.original_context_length": 256},
    ),
    "phi3_longrope": ("phi3", "Phi3Config", {"num_key_value_heads": 4, **LONGROPE}, LONG_KEYS),
}
"""Files of which transformers reads the weights alone: it takes its own defaults for other settings."""


def written(case: Case, path: Path) -> PreTrainedModel:
    """Write a random model of a case; return it."""
    kind, config, changes, keys = case
    if kind in ("gemma2", "gemma3", "phi3") and not is_at_least("transformers", AS_LLAMA_CPP):
        pytest.skip(f"transformers before {AS_LLAMA_CPP} reads its tokenizer with other settings")
    model = random_model(hf_config(config.removesuffix("Config"), **SIZES | changes))
    longrope = "longrope" in str(changes)
    write_model(path, model, kind, keys, FACTORS if longrope else None)
    return model
