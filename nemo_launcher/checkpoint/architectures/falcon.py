# SPDX-License-Identifier: Apache-2.0
"""Falcon: attention and feed-forward side by side, with one LayerNorm or two; rotary positions or ALiBi."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import (
    ACTIVATIONS,
    Architecture,
    Layout,
    Settings,
    Source,
    Weights,
    same,
)
from nemo_launcher.checkpoint.architectures.llama import ROTARY, decoder_settings
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number, text, whole

_LAYER = "transformer.h.*."
_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("transformer.word_embeddings"),
    "decoder.final_layernorm": same("transformer.ln_f"),
    "output_layer": same("lm_head"),
    "decoder.layers.*.input_layernorm": same(f"{_LAYER}ln_attn", f"{_LAYER}input_layernorm"),
    "decoder.layers.*.pre_mlp_layernorm": same(
        f"{_LAYER}ln_mlp", f"{_LAYER}post_attention_layernorm", f"{_LAYER}input_layernorm"
    ),
    "decoder.layers.*.self_attention.linear_qkv": Source(
        (f"{_LAYER}self_attention.query_key_value",), Layout.QKV_BY_GROUP
    ),
    "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}self_attention.dense"),
    "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}mlp.dense_h_to_4h"),
    "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}mlp.dense_4h_to_h"),
}


_ALIBI: Settings = {"position_embedding_type": "alibi", "alibi_bias": "scaled_bf16"}


def _settings(config: Section) -> Settings:
    hidden, heads = whole(config, "hidden_size") or 0, whole(config, "num_attention_heads") or 1
    groups = 1 if config.get("multi_query") else heads
    if config.get("new_decoder_architecture"):
        groups = whole(config, "num_kv_heads") or heads
    own = {"intermediate_size": config.get("ffn_hidden_size") or 4 * hidden, "num_key_value_heads": groups}
    return decoder_settings({**config, **own}) | {
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_epsilon"),
        "bias": bool(config.get("bias")),
        "parallel_attention": bool(config.get("parallel_attn") or config.get("new_decoder_architecture")),
        **ACTIVATIONS[text(config, "activation") or "gelu"],
        **(_ALIBI if config.get("alibi") else {}),
    }


def _problems(config: Section) -> list[str]:
    found = rotary_problems(config)
    if config.get("new_decoder_architecture") and config.get("parallel_attn") is False:
        found.append("new_decoder_architecture with parallel_attn False")
    return found


FALCON = Architecture(
    name="FalconForCausalLM",
    kind="falcon",
    family="llama",
    counts=("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    optional_counts=("num_kv_heads", "ffn_hidden_size", "max_position_embeddings", "num_ln_in_parallel_attn"),
    numbers=("layer_norm_epsilon", "rope_theta"),
    flags=("tie_word_embeddings", "bias", "multi_query", "parallel_attn", "new_decoder_architecture", "alibi"),
    divisions=(("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_kv_heads")),
    others=(*ROTARY, "attention_dropout", "hidden_dropout", "num_ln_in_parallel_attn", "n_embed"),
    fixed={"activation": tuple(ACTIVATIONS), "apply_residual_connection_post_layernorm": (False,)},
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
