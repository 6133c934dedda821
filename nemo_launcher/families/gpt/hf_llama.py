# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face's Llama, Mistral and Qwen2 to NeMo GPT checkpoints: configuration and weight map.

Source of the configuration keys: NeMo 1.23, scripts/checkpoint_converters/convert_llama_hf_to_nemo.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.families.gpt.layouts import to_mcore_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"

_FIRST_LAYER = "model.layers.0.self_attn."
_LAYER_WEIGHTS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
}


def nemo_config(config: PretrainedConfig, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the `model_config.yaml` keys for a Hugging Face Llama, Mistral or Qwen2 configuration."""
    length = _sequence_length(config)
    return {
        "mcore_gpt": True,
        "transformer_engine": True,
        "encoder_seq_length": length,
        "max_position_embeddings": length,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "activation": "fast-swiglu",
        "bias": False,
        "qkv_bias": f"{_FIRST_LAYER}q_proj.bias" in weights,
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": config.rope_parameters["rope_theta"],
        **_rope_scaling(config.rope_parameters),
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "bias_activation_fusion": False,
        "make_vocab_size_divisible_by": 128,
    }


def _sequence_length(config: PretrainedConfig) -> int:
    """Return the model's maximum length: up to its sliding window, attention is not limited."""
    # Llama ignores a window in its config.json; Qwen2's is null if use_sliding_window is false.
    window = None if config.model_type == "llama" else config.sliding_window
    length = int(config.max_position_embeddings)
    if not window or window >= length:
        return length
    print(f"sequences are limited to the sliding window of {window} tokens (instead of {length})", flush=True)
    return int(window)


def _rope_scaling(rope: Mapping[str, object]) -> dict[str, object]:
    """Return the keys that extend rotary positions beyond the original context length."""
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return {"seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3":
        return {
            "scale_positional_embedding": True,
            "scale_factor": rope["factor"],
            "low_freq_factor": rope["low_freq_factor"],
            "high_freq_factor": rope["high_freq_factor"],
            "old_context_len": rope["original_max_position_embeddings"],
        }
    return {}


def tokenizer_section(vocab: Iterable[str]) -> dict[str, object]:
    """Return nothing: the common `tokenizer` section suffices."""
    return {}


def to_stored(weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """Return our weights under the names that NeMo 1.23 stores."""
    return {to_mcore_name(name): weight for name, weight in weights.items()}


def convert_weights(weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """Return the weights under our names (families.gpt.layouts) in Megatron-core's layout.

    Queries, keys and values are interleaved by group: [groups, heads / groups + 2, head_dim, hidden]. The gate precedes
    the up-projection: [2 * ffn, hidden].
    """
    result = {
        "embedding.word_embeddings.weight": weights["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": weights["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        result["output_layer.weight"] = weights["lm_head.weight"]
    groups, hidden = config.num_key_value_heads, config.hidden_size
    for number in range(config.num_hidden_layers):
        theirs, ours = f"model.layers.{number}.", f"decoder.layers.{number}."
        for source, target in _LAYER_WEIGHTS.items():
            result[ours + target] = weights[theirs + source]
        parts = [weights[f"{theirs}self_attn.{name}_proj.weight"].view(groups, -1, hidden) for name in "qkv"]
        result[f"{ours}self_attention.linear_qkv.weight"] = torch.cat(parts, dim=1).reshape(-1, hidden)
        if f"{_FIRST_LAYER}q_proj.bias" in weights:
            biases = [weights[f"{theirs}self_attn.{name}_proj.bias"].view(groups, -1) for name in "qkv"]
            result[f"{ours}self_attention.linear_qkv.bias"] = torch.cat(biases, dim=1).flatten()
        gate, up = (weights[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        result[f"{ours}mlp.linear_fc1.weight"] = torch.cat((gate, up))
    return result
