# SPDX-License-Identifier: Apache-2.0
"""BLOOM: ALiBi instead of positions, a LayerNorm behind the embedding, biases and GELU."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import (
    ACTIVATIONS,
    COMMON,
    Architecture,
    Layout,
    Settings,
    Source,
    Weights,
    same,
)
from nemo_launcher.files.values import Section, number, whole

_PRETRAINED_LENGTH = 2048
"""The length of the texts that the published models were trained on, which most configurations do not name."""
_LAYER = "transformer.h.*."
_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("transformer.word_embeddings"),
    "embedding.word_embeddings_layernorm": same("transformer.word_embeddings_layernorm"),
    "decoder.final_layernorm": same("transformer.ln_f"),
    "output_layer": same("lm_head"),
    "decoder.layers.*.input_layernorm": same(f"{_LAYER}input_layernorm"),
    "decoder.layers.*.self_attention.linear_qkv": Source(
        (f"{_LAYER}self_attention.query_key_value",), Layout.QKV_BY_GROUP
    ),
    "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}self_attention.dense"),
    "decoder.layers.*.pre_mlp_layernorm": same(f"{_LAYER}post_attention_layernorm"),
    "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}mlp.dense_h_to_4h"),
    "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}mlp.dense_4h_to_h"),
}


def _settings(config: Section) -> Settings:
    hidden, length = whole(config, "hidden_size") or 0, whole(config, "seq_length") or _PRETRAINED_LENGTH
    return {
        **COMMON,
        "encoder_seq_length": length,
        "max_position_embeddings": length,
        "num_layers": config["n_layer"],
        "hidden_size": hidden,
        "ffn_hidden_size": 4 * hidden,
        "num_attention_heads": config["n_head"],
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_epsilon"),
        "bias": True,
        "position_embedding_type": "alibi",
        "embedding_layernorm": True,
        "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings")),
        **ACTIVATIONS["gelu_new"],
    }


def _problems(config: Section) -> list[str]:
    """Return what is not supported: with slow_but_exact, transformers leaves out biases of sliced products."""
    slices = whole(config, "pretraining_tp") or 1
    return [f"slow_but_exact with pretraining_tp {slices}"] if config.get("slow_but_exact") and slices > 1 else []


BLOOM = Architecture(
    name="BloomForCausalLM",
    kind="bloom",
    family="gpt3",
    counts=("hidden_size", "n_head", "n_layer", "vocab_size"),
    optional_counts=("num_attention_heads", "num_hidden_layers", "n_embed", "seq_length", "pretraining_tp"),
    numbers=("layer_norm_epsilon",),
    flags=("tie_word_embeddings", "slow_but_exact"),
    divisions=(("hidden_size", "n_head"),),
    others=(
        *("attention_dropout", "hidden_dropout", "n_inner", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv"),
        *("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"),
    ),
    fixed={"apply_residual_connection_post_layernorm": (False,)},
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
