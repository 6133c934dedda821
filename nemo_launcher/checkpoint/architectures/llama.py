# SPDX-License-Identifier: Apache-2.0
"""Llama, and what other architectures have in common with it.

Source of the configuration keys: NeMo 1.23, scripts/checkpoint_converters/convert_llama_hf_to_nemo.py.
"""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import (
    COMMON,
    Architecture,
    Layout,
    Settings,
    Source,
    Weights,
    same,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems, rotary_settings
from nemo_launcher.files.values import Section, number, whole

COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim", "max_position_embeddings")
DIVISIONS = (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads"))
ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")

ATTENTION: Weights = {
    "decoder.layers.*.self_attention.linear_qkv": Source(
        tuple(f"model.layers.*.self_attn.{name}_proj" for name in "qkv"), Layout.QKV
    ),
    "decoder.layers.*.self_attention.linear_proj": same("model.layers.*.self_attn.o_proj"),
}
OUTSIDE: Weights = {
    "embedding.word_embeddings": same("model.embed_tokens"),
    "decoder.final_layernorm": same("model.norm"),
    "output_layer": same("lm_head"),
}
MLP: Weights = {
    "decoder.layers.*.mlp.linear_fc1": Source(
        ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"), Layout.STACKED
    ),
    "decoder.layers.*.mlp.linear_fc2": same("model.layers.*.mlp.down_proj"),
}
NORMS: Weights = {
    "decoder.layers.*.input_layernorm": same("model.layers.*.input_layernorm"),
    "decoder.layers.*.pre_mlp_layernorm": same("model.layers.*.post_attention_layernorm"),
}
WEIGHTS: Weights = OUTSIDE | ATTENTION | MLP | NORMS
HEAD_NORMS: Weights = {
    "decoder.layers.*.self_attention.q_layernorm": same("model.layers.*.self_attn.q_norm"),
    "decoder.layers.*.self_attention.k_layernorm": same("model.layers.*.self_attn.k_norm"),
}


def decoder_settings(config: Section) -> Settings:
    """Return the keys that decoders with rotary positions have in common, those of a Llama."""
    length, heads = whole(config, "max_position_embeddings") or 0, whole(config, "num_attention_heads") or 1
    return {
        **COMMON,
        "encoder_seq_length": length,
        "max_position_embeddings": length,
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": heads,
        "num_query_groups": config.get("num_key_value_heads") or heads,
        "kv_channels": config.get("head_dim") or (whole(config, "hidden_size") or 0) // heads,
        "normalization": "rmsnorm",
        "layernorm_epsilon": number(config, "rms_norm_eps"),
        "activation": "fast-swiglu",
        "bias": bool(config.get("attention_bias") or config.get("mlp_bias")),
        "position_embedding_type": "rope",
        **rotary_settings(config),
        "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings")),
    }


def limited(settings: Settings, window: object) -> Settings:
    """Return the settings of a model with a window in all layers: up to its length, attention is not limited."""
    length = settings["max_position_embeddings"]
    if not isinstance(window, int) or not isinstance(length, int) or window >= length:
        return settings
    return settings | {"encoder_seq_length": window, "max_position_embeddings": window}


LLAMA = Architecture(
    name="LlamaForCausalLM",
    kind="llama",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "attention_bias", "mlp_bias"),
    divisions=DIVISIONS,
    # Llama ignores a window. Slices of the products (pretraining_tp) change their rounding alone.
    others=(
        *(*ROTARY, "attention_dropout", "pretraining_tp", "sliding_window", "use_sliding_window"),
        *("max_sequence_length", "is_llama_config"),
    ),
    fixed={"hidden_act": ("silu",), "rope_interleaved": (False,)},
    problems=rotary_problems,
    settings=decoder_settings,
    weights=WEIGHTS,
)
