# SPDX-License-Identifier: Apache-2.0
"""Gemma, Gemma 2 and Gemma 3 (text): zero-centered norms, a scaled embedding and a GELU gate.

Gemma 2 and 3 have norms around attention and feed-forward, and windows in a pattern of layers. Gemma 2 caps attention
scores and logits; Gemma 3 normalizes queries and keys and has other rotary positions in the layers with a window.
"""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    ATTENTION,
    COUNTS,
    HEAD_NORMS,
    MLP,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    WEIGHTS,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import layered_problems, layered_settings, rotary_problems
from nemo_launcher.checkpoint.architectures.windows import SLIDING, window_problems, window_settings
from nemo_launcher.files.values import Section, number

_AROUND: Weights = (
    OUTSIDE
    | ATTENTION
    | MLP
    | {
        "decoder.layers.*.input_layernorm": same("model.layers.*.input_layernorm"),
        "decoder.layers.*.post_self_attn_layernorm": same("model.layers.*.post_attention_layernorm"),
        "decoder.layers.*.pre_mlp_layernorm": same("model.layers.*.pre_feedforward_layernorm"),
        "decoder.layers.*.post_mlp_layernorm": same("model.layers.*.post_feedforward_layernorm"),
    }
)
_TANH = ("gelu_pytorch_tanh", "gelu_new")
_OTHERS = (*ROTARY, "attention_dropout", "sliding_window", "sliding_window_size", "layer_types")
_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")


def _settings(config: Section) -> Settings:
    return decoder_settings(config) | {
        "layernorm_zero_centered_gamma": True,
        "apply_embedding_scaling": True,
        "activation": "fast-geglu",
        "openai_gelu": True,  # the tanh approximation
    }


def _gemma2_settings(config: Section, **own: object) -> Settings:
    return (
        _settings(config)
        | {
            "sublayer_norms": "around",
            "softmax_scale": (number(config, "query_pre_attn_scalar") or 1.0) ** -0.5,
            "attn_logit_softcapping": number(config, "attn_logit_softcapping"),
            "final_logit_softcapping": number(config, "final_logit_softcapping"),
        }
        | window_settings(config, always="rotary_base_local" in own)
    )


def _gemma3_settings(config: Section) -> Settings:
    full, local = layered_settings(config)
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and SLIDING not in kinds:
        local = {}
    return _gemma2_settings(full, **local) | {"qk_layernorm": True} | local


GEMMA = Architecture(
    name="GemmaForCausalLM",
    kind="gemma",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "attention_bias"),
    divisions=(("num_attention_heads", "num_key_value_heads"),),
    others=(*ROTARY, "attention_dropout"),
    fixed={
        "hidden_act": (*_TANH, "gelu"),  # transformers computes the tanh approximation for all three
        "hidden_activation": (*_TANH, "gelu"),
        "use_bidirectional_attention": (False,),
    },
    problems=rotary_problems,
    settings=_settings,
    weights=WEIGHTS,
)
GEMMA2 = Architecture(
    name="Gemma2ForCausalLM",
    kind="gemma2",
    family="llama",
    counts=COUNTS,
    optional_counts=OPTIONAL_COUNTS,
    numbers=("rms_norm_eps", "rope_theta", "query_pre_attn_scalar", *_CAPS),
    flags=("tie_word_embeddings", "attention_bias"),
    divisions=(("num_attention_heads", "num_key_value_heads"),),
    others=(*_OTHERS, "hidden_act", "cache_implementation"),  # hidden_activation counts
    fixed={"hidden_activation": _TANH, "use_bidirectional_attention": (False,)},
    problems=lambda config: rotary_problems(config) + window_problems(config),
    settings=_gemma2_settings,
    weights=_AROUND,
)
GEMMA3 = Architecture(
    name="Gemma3ForCausalLM",
    kind="gemma3_text",
    family="llama",
    counts=COUNTS,
    optional_counts=(*OPTIONAL_COUNTS, "sliding_window_pattern"),
    numbers=("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", _CAPS[0]),
    flags=("tie_word_embeddings", "attention_bias"),
    divisions=(("num_attention_heads", "num_key_value_heads"),),
    others=(*_OTHERS, "hidden_act", "cache_implementation"),
    # transformers ignores a cap of attention scores
    fixed={"hidden_activation": _TANH, "use_bidirectional_attention": (False,), "attn_logit_softcapping": ()},
    problems=lambda config: layered_problems(config) + window_problems(config),
    settings=_gemma3_settings,
    weights=_AROUND | HEAD_NORMS,
)
