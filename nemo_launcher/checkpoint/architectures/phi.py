# SPDX-License-Identifier: Apache-2.0
"""Phi-1, 1.5 and 2: attention and feed-forward side by side behind one LayerNorm, biases, a head with a bias."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import ACTIVATIONS, Architecture, Settings, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    ATTENTION,
    COUNTS,
    DIVISIONS,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.files.values import Section, number, text

_LAYER = "model.layers.*."
_WEIGHTS: Weights = (
    OUTSIDE
    | ATTENTION
    | {
        "decoder.final_layernorm": same("model.final_layernorm"),
        "decoder.layers.*.input_layernorm": same(f"{_LAYER}input_layernorm"),
        "decoder.layers.*.pre_mlp_layernorm": same(f"{_LAYER}input_layernorm"),
        "decoder.layers.*.self_attention.q_layernorm": same(f"{_LAYER}self_attn.q_layernorm"),
        "decoder.layers.*.self_attention.k_layernorm": same(f"{_LAYER}self_attn.k_layernorm"),
        "decoder.layers.*.self_attention.linear_proj": same(f"{_LAYER}self_attn.dense"),
        "decoder.layers.*.mlp.linear_fc1": same(f"{_LAYER}mlp.fc1"),
        "decoder.layers.*.mlp.linear_fc2": same(f"{_LAYER}mlp.fc2"),
    }
)


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "normalization": "layernorm",
        "layernorm_epsilon": number(config, "layer_norm_eps"),
        "bias": True,
        "tokens_head_bias": True,
        "parallel_attention": True,
        "qk_layernorm": bool(config.get("qk_layernorm")),
        **ACTIVATIONS[text(config, "hidden_act") or "gelu_new"],
    }


PHI = Architecture(
    name="PhiForCausalLM",
    kind="phi",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("layer_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "qk_layernorm"),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "resid_pdrop", "embd_pdrop"),
    fixed={"hidden_act": tuple(ACTIVATIONS)},
    problems=rotary_problems,
    settings=_settings,
    weights=_WEIGHTS,
)
