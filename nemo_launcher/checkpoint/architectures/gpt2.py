# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, LayerNorm, biases, and matrices stored as [in, out] (Conv1D)."""

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
from nemo_launcher.files.values import Section, number, whole

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


def _transposed(name: str) -> Source:
    return Source((name,), Layout.TRANSPOSED)


_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("transformer.wte"),
    "embedding.position_embeddings": same("transformer.wpe"),
    "decoder.final_layernorm": same("transformer.ln_f"),
    "output_layer": same("lm_head"),
    "decoder.layers.*.input_layernorm": same("transformer.h.*.ln_1"),
    "decoder.layers.*.self_attention.linear_qkv": Source(("transformer.h.*.attn.c_attn",), Layout.QKV_COLUMNS),
    "decoder.layers.*.self_attention.linear_proj": _transposed("transformer.h.*.attn.c_proj"),
    "decoder.layers.*.pre_mlp_layernorm": same("transformer.h.*.ln_2"),
    "decoder.layers.*.mlp.linear_fc1": _transposed("transformer.h.*.mlp.c_fc"),
    "decoder.layers.*.mlp.linear_fc2": _transposed("transformer.h.*.mlp.c_proj"),
}


def _problems(config: Section) -> list[str]:
    scaled = config.get("scale_attn_weights") is False or config.get("scale_attn_by_inverse_layer_idx")
    return ["scaling of attention scores"] if scaled else []


def _settings(config: Section) -> Settings:
    hidden = whole(config, "n_embd") or 0
    return {
        **COMMON,
        "encoder_seq_length": config["n_positions"],
        "max_position_embeddings": config["n_positions"],
        "num_layers": config["n_layer"],
        "hidden_size": hidden,
        "ffn_hidden_size": config.get("n_inner") or 4 * hidden,
        "num_attention_heads": config["n_head"],
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_epsilon"),
        "activation": "gelu",
        "openai_gelu": True,  # the tanh approximation, GPT-2's gelu_new
        "bias": True,
        "position_embedding_type": "learned_absolute",
        "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings")),
        "hidden_dropout": config.get("resid_pdrop"),
        "attention_dropout": config.get("attn_pdrop"),
    }


GPT2 = Architecture(
    name="GPT2LMHeadModel",
    kind="gpt2",
    family="gpt3",
    counts=("n_embd", "n_head", "n_layer", "vocab_size"),
    optional_counts=("n_positions", "n_inner", "n_ctx"),
    numbers=("layer_norm_epsilon",),
    flags=("tie_word_embeddings", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
    divisions=(("n_embd", "n_head"),),
    others=(
        *("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
        *("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    ),
    fixed={"activation_function": ACTIVATIONS, "add_cross_attention": (False,)},
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
