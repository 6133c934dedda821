# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX (also Pythia, Dolly): attention and feed-forward side by side, LayerNorm, biases, partial rotation."""

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
from nemo_launcher.checkpoint.architectures.llama import COUNTS, DIVISIONS, ROTARY, decoder_settings
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number, text

_LAYER = "gpt_neox.layers.*."
_WEIGHTS: Weights = {
    "embedding.word_embeddings": same("gpt_neox.embed_in"),
    "decoder.final_layernorm": same("gpt_neox.final_layer_norm"),
    "output_layer": same("embed_out", "lm_head"),
    "decoder.layers.*.input_layernorm": same(f"{_LAYER}input_layernorm"),
    "decoder.layers.*.self_attention.linear_qkv": Source((f"{_LAYER}attention.query_key_value",), Layout.QKV_BY_GROUP),
    "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}attention.dense"),
    "decoder.layers.*.pre_mlp_layernorm": same(f"{_LAYER}post_attention_layernorm"),
    "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}mlp.dense_h_to_4h"),
    "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}mlp.dense_4h_to_h"),
}


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_eps"),
        "bias": True,
        "parallel_attention": bool(config.get("use_parallel_residual")),
        **ACTIVATIONS[text(config, "hidden_act") or "gelu"],
    }


GPT_NEOX = Architecture(
    name="GPTNeoXForCausalLM",
    kind="gpt_neox",
    family="llama",
    counts=COUNTS,
    optional_counts=("max_position_embeddings",),
    numbers=("layer_norm_eps", "rope_theta", "rotary_pct", "rotary_emb_base"),
    flags=("tie_word_embeddings", "attention_bias", "use_parallel_residual"),
    divisions=DIVISIONS[:1],
    others=(
        *(*ROTARY, "attention_dropout", "hidden_dropout", "classifier_dropout"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob"),
    ),
    fixed={"hidden_act": tuple(ACTIVATIONS)},
    problems=rotary_problems,
    settings=_settings,
    other_names={"lm_head.weight": "embed_out.weight"},
    weights=_WEIGHTS,
)
