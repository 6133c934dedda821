# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: Mixtral and Qwen3-MoE, whose layers all have experts."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Experts, Settings
from nemo_launcher.checkpoint.architectures.llama import (
    ATTENTION,
    COUNTS,
    DIVISIONS,
    HEAD_NORMS,
    NORMS,
    OPTIONAL_COUNTS,
    OUTSIDE,
    ROTARY,
    decoder_settings,
)
from nemo_launcher.checkpoint.architectures.rotary import rotary_problems
from nemo_launcher.checkpoint.architectures.windows import window_problems, window_settings
from nemo_launcher.files.values import Section

_MIXTRAL = Experts("model.layers.*.mlp", "model.layers.*.block_sparse_moe", gate="w1", up="w3", down="w2")
_QWEN3 = Experts("model.layers.*.mlp", "model.layers.*.mlp", gate="gate_proj", up="up_proj", down="down_proj")
_WINDOW = ("sliding_window", "max_window_layers")
_TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "attention_dropout")
"""Keys of the training of all weights."""


def _experts(experts: object, per_token: object) -> Settings:
    return {"num_moe_experts": experts, "moe_router_topk": per_token}


def _mixtral_settings(config: Section) -> Settings:
    experts = _experts(config.get("num_local_experts"), config.get("num_experts_per_tok"))
    return decoder_settings(config) | experts | window_settings(config, all_layers=True)


def _mixtral_problems(config: Section) -> list[str]:
    return rotary_problems(config) + window_problems(config)


def _qwen3_settings(config: Section) -> Settings:
    experts = _experts(config.get("num_experts", config.get("num_local_experts")), config.get("num_experts_per_tok"))
    own = {"qk_layernorm": True, "ffn_hidden_size": config.get("moe_intermediate_size")}
    first = {} if config.get("norm_topk_prob") else {"moe_router_pre_softmax": True}
    return decoder_settings(config) | own | experts | first | window_settings(config, all_layers=True)


def _qwen3_problems(config: Section) -> list[str]:
    dense = config.get("mlp_only_layers")
    found = [f"mlp_only_layers {dense!r}"] if dense else []
    return found + rotary_problems(config) + window_problems(config)


MIXTRAL = Architecture(
    name="MixtralForCausalLM",
    kind="mixtral",
    family="llama",
    counts=COUNTS,
    optional_counts=(*OPTIONAL_COUNTS, "num_local_experts", "num_experts_per_tok"),
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings",),
    divisions=DIVISIONS,
    others=(*ROTARY, *_TRAINING, "sliding_window"),
    fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
    problems=_mixtral_problems,
    settings=_mixtral_settings,
    weights=OUTSIDE | ATTENTION | NORMS | _MIXTRAL.weights,
    experts=_MIXTRAL,
)
QWEN3_MOE = Architecture(
    name="Qwen3MoeForCausalLM",
    kind="qwen3_moe",
    family="llama",
    counts=COUNTS,
    optional_counts=(
        *(*OPTIONAL_COUNTS, "moe_intermediate_size", "num_experts", "num_local_experts", "num_experts_per_tok"),
        "decoder_sparse_step",
    ),
    numbers=("rms_norm_eps", "rope_theta"),
    flags=("tie_word_embeddings", "use_sliding_window", "norm_topk_prob"),
    divisions=DIVISIONS[1:],
    others=(*ROTARY, *_WINDOW, *_TRAINING, "mlp_only_layers"),
    fixed={"hidden_act": ("silu",), "attention_bias": (False,), "decoder_sparse_step": (1,)},
    problems=_qwen3_problems,
    settings=_qwen3_settings,
    weights=OUTSIDE | ATTENTION | HEAD_NORMS | NORMS | _QWEN3.weights,
    experts=_QWEN3,
)
