# SPDX-License-Identifier: Apache-2.0
"""GGUF files of random transformers models, named by gguf-py and changed as llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tests.gguf_files import TOKENS, write_gguf

ZERO_CENTERED = ("gemma2", "gemma3")
"""Architectures whose norms llama.cpp's converter stores with 1 added."""
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a model whose norms and biases are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.normal_(0.0 if "bias" in name or config.model_type.startswith("gemma") else 1.0, 0.3)
            else:
                weight.normal_(0.0, 0.2)
    return model


def write_model(
    path: Path,
    model: PreTrainedModel,
    kind: str,
    metadata: Mapping[str, Any],
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    """Write a model as a file of the architecture `kind`; metadata: keys to add or replace, without `kind`."""
    config = model.config
    names = get_tensor_name_map(next(k for k, v in MODEL_ARCH_NAMES.items() if v == kind), config.num_hidden_layers)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        weights[theirs] = _as_converted(name, weight, kind, config).float().numpy().copy()
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": None,
    }
    values = {f"{kind}.{key}": value for key, value in (own | dict(metadata)).items() if "tokenizer" not in key}
    values |= {key: value for key, value in metadata.items() if "tokenizer" in key}
    return write_gguf(path, values, weights | dict(extra or {}), architecture=kind)


def _as_converted(name: str, weight: torch.Tensor, kind: str, config: PretrainedConfig) -> torch.Tensor:
    if kind in ZERO_CENTERED and name.endswith("norm.weight"):
        return weight + 1
    if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    return weight
