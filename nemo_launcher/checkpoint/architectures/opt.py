# SPDX-License-Identifier: Apache-2.0
"""OPT: learned positions, whose first two rows no text uses, LayerNorm, biases and ReLU."""

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
from nemo_launcher.files.values import Section, text

_LAYER = "model.decoder.layers.*."
_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("model.decoder.embed_tokens"),
    "embedding.position_embeddings": Source(("model.decoder.embed_positions",), Layout.WITHOUT_TWO_ROWS),
    "decoder.final_layernorm": same("model.decoder.final_layer_norm"),
    "output_layer": same("lm_head"),
    "decoder.layers.*.input_layernorm": same(f"{_LAYER}self_attn_layer_norm"),
    "decoder.layers.*.self_attention.linear_qkv": Source(
        tuple(f"{_LAYER}self_attn.{name}_proj" for name in "qkv"), Layout.QKV
    ),
    "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}self_attn.out_proj"),
    "decoder.layers.*.pre_mlp_layernorm": same(f"{_LAYER}final_layer_norm"),
    "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}fc1"),
    "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}fc2"),
}


def _settings(config: Section) -> Settings:
    return {
        **COMMON,
        "encoder_seq_length": config["max_position_embeddings"],
        "max_position_embeddings": config["max_position_embeddings"],
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["ffn_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "normalization": "layernorm",
        "layernorm_epsilon": 1e-5,
        "bias": True,
        "position_embedding_type": "learned_absolute",
        "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings")),
        **ACTIVATIONS[text(config, "activation_function") or "relu"],
    }


def _problems(config: Section) -> list[str]:
    width = config.get("word_embed_proj_dim")
    narrow = width is not None and width != config.get("hidden_size")
    return [f"word_embed_proj_dim {width} beside hidden_size {config.get('hidden_size')}"] if narrow else []


OPT = Architecture(
    name="OPTForCausalLM",
    kind="opt",
    family="gpt3",
    counts=("hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size"),
    optional_counts=("max_position_embeddings", "word_embed_proj_dim"),
    flags=("tie_word_embeddings",),
    divisions=(("hidden_size", "num_attention_heads"),),
    others=("dropout", "attention_dropout", "activation_dropout", "layerdrop", "init_std"),
    fixed={
        "activation_function": tuple(ACTIVATIONS),
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "enable_bias": (True,),
        "layer_norm_elementwise_affine": (True,),
    },
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
