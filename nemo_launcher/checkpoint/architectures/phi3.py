# SPDX-License-Identifier: Apache-2.0
"""Phi-3 and Phi-4: a Llama with fused projections, partial rotary positions and LongRoPE."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Layout, Settings, Source, Weights, same
from nemo_launcher.checkpoint.architectures.llama import (
    COUNTS,
    DIVISIONS,
    NORMS,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    decoder_settings,
    limited,
)
from nemo_launcher.checkpoint.architectures.rotary import longrope_problems, longrope_settings
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section

_WEIGHTS: Weights = (
    OUTSIDE
    | NORMS
    | {
        "decoder.layers.*.self_attention.linear_qkv": Source(("model.layers.*.self_attn.qkv_proj",), Layout.QKV_ROWS),
        "decoder.layers.*.self_attention.linear_proj": same("model.layers.*.self_attn.o_proj"),
        "decoder.layers.*.mlp.linear_fc1": same("model.layers.*.mlp.gate_up_proj"),
        "decoder.layers.*.mlp.linear_fc2": same("model.layers.*.mlp.down_proj"),
    }
)


def _settings(config: Section) -> Settings:
    settings = decoder_settings(config) | window_settings(config, all_layers=True)
    longrope = longrope_settings(config)
    return limited(settings, longrope.pop("length")) | longrope if longrope else settings


PHI3 = Architecture(
    name="Phi3ForCausalLM",
    kind="phi3",
    family="llama",
    counts=COUNTS,
    optional_counts=(*OPTIONAL_COUNTS[:1], "max_position_embeddings", "original_max_position_embeddings"),
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings",),
    divisions=DIVISIONS,
    others=(*ROTARY, "attention_dropout", "resid_pdrop", "embd_pdrop", "sliding_window"),
    fixed={
        **dict.fromkeys(("attention_bias", "mlp_bias"), (False,)),
        "hidden_act": ("silu",),
        "full_attn_mod": (1,),
        "lm_head_bias": (False,),
        "interpolate_factor": (1,),
    },
    problems=lambda config: longrope_problems(config) + window_problems(config),
    settings=_settings,
    weights=_WEIGHTS,
)
