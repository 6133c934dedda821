# SPDX-License-Identifier: Apache-2.0
"""GPT-J: attention and feed-forward side by side behind one LayerNorm, rotary positions of adjacent dimensions."""

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
from nemo_launcher.files.values import Section, number, text, whole

_LAYER = "transformer.h.*."
_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("transformer.wte"),
    "decoder.final_layernorm": same("transformer.ln_f"),
    "output_layer": same("lm_head"),
    "decoder.layers.*.input_layernorm": same(f"{_LAYER}ln_1"),
    "decoder.layers.*.pre_mlp_layernorm": same(f"{_LAYER}ln_1"),
    "decoder.layers.*.self_attention.linear_qkv": Source(
        tuple(f"{_LAYER}attn.{name}_proj" for name in "qkv"), Layout.QKV
    ),
    "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}attn.out_proj"),
    "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}mlp.fc_in"),
    "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}mlp.fc_out"),
}


def _settings(config: Section) -> Settings:
    hidden, heads = whole(config, "n_embd") or 0, whole(config, "n_head") or 1
    size = hidden // heads
    return {
        **COMMON,
        "encoder_seq_length": config["n_positions"],
        "max_position_embeddings": config["n_positions"],
        "num_layers": config["n_layer"],
        "hidden_size": hidden,
        "ffn_hidden_size": config.get("n_inner") or 4 * hidden,
        "num_attention_heads": heads,
        "kv_channels": size,
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_epsilon"),
        "bias": True,
        "tokens_head_bias": True,
        "parallel_attention": True,
        "position_embedding_type": "rope",
        "rotary_base": 10000.0,
        "rotary_percentage": (whole(config, "rotary_dim") or size) / size,
        "rotary_interleaved": True,
        "share_embeddings_and_output_weights": bool(config.get("tie_word_embeddings")),
        **ACTIVATIONS[text(config, "activation_function") or "gelu_new"],
    }


def _problems(config: Section) -> list[str]:
    width, hidden, heads = (config.get(key) for key in ("rotary_dim", "n_embd", "n_head"))
    if "rotary_dim" in config and width is None:
        return ["rotary_dim null"]
    fits = not (isinstance(width, int) and isinstance(hidden, int) and isinstance(heads, int)) or (
        width % 2 == 0 and width <= hidden // heads
    )
    return [] if fits else [f"rotary_dim {width}"]


GPTJ = Architecture(
    name="GPTJForCausalLM",
    kind="gptj",
    family="gpt3",
    counts=("n_embd", "n_head", "n_layer", "vocab_size"),
    optional_counts=("n_positions", "n_inner", "n_ctx", "rotary_dim"),
    numbers=("layer_norm_epsilon",),
    flags=("tie_word_embeddings", "scale_attn_weights"),
    divisions=(("n_embd", "n_head"),),
    others=(
        *("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
        *("attn_pdrop", "embd_pdrop", "resid_pdrop", "rotary"),
    ),
    fixed={"activation_function": tuple(ACTIVATIONS), "scale_attn_weights": (True,), "rotary": (True,)},
    problems=_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
