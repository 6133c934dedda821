# SPDX-License-Identifier: Apache-2.0
"""Tiny random Hugging Face models of each decoder architecture: heads, ties, biases, windows and ropes vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.requirements import is_transformers_5
from tests.conformance.families.gpt_models import GPT_FAMILIES, SHAPES
from tests.conformance.families.multi_modal_models import MULTI_MODAL_FAMILIES, config_of, write
from tests.conformance.families.tiny import SHAPE, Tiny, of
from tests.engine import save_tokenizer
from tests.versions import config_class, hf_config

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
_ODD = {"hidden_size": 30, "head_dim": 10, "intermediate_size": 37, "num_attention_heads": 3, "num_key_value_heads": 1}
_WINDOWED = {"sliding_window": 7}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}


def _longrope(pairs: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0 + 0.1 * n for n in range(pairs)], "long_factor": [2.0 + n for n in range(pairs)]}
    return {"rope_type": "longrope", "rope_theta": 500.0, **factors}


FAMILIES: dict[str, Tiny] = (
    of(
        "Llama",
        untied={"tie_word_embeddings": False},
        head_dim={"head_dim": 16, "tie_word_embeddings": True},
        llama3={"head_dim": 16, "rope_parameters": _LLAMA3},
        linear={"rope_parameters": _LINEAR},
        biases={"attention_bias": True, "mlp_bias": True},
        attention_bias={"attention_bias": True, "num_key_value_heads": 4},
        yarn={"rope_parameters": _YARN},
        yarn_whole={
            "rope_parameters": _YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3}
        },
        dynamic={"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
        odd=_ODD,
    )
    | of(
        "Mistral",
        plain={"sliding_window": None},
        window=_WINDOWED,
        odd=_ODD | _WINDOWED,
        yarn={"rope_parameters": _YARN},
    )
    | of(
        "Ministral3",
        grows={"rope_parameters": _YARN | {"original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}},
        mscale={
            "rope_parameters": _YARN
            | {
                "original_max_position_embeddings": 64,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            }
        },
        tied={
            "tie_word_embeddings": True,
            "rope_parameters": _YARN | {"original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1},
        },
        window=_WINDOWED
        | {"rope_parameters": _YARN | {"original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}},
    )
    | of(
        "Qwen2",
        plain={},
        tied={"tie_word_embeddings": True},
        window={"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 7},
        yarn={"rope_parameters": _YARN},
    )
    | of(
        "Qwen3",
        plain={"head_dim": 16},
        tied={"head_dim": 8, "tie_word_embeddings": True},
        biases={"head_dim": 12, "attention_bias": True, "num_key_value_heads": 4},
        window={"head_dim": 16, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 7},
        odd=_ODD | {"rope_parameters": _YARN},
    )
    | of(
        "Gemma",
        plain={"head_dim": 16},
        many_queries={"head_dim": 8, "num_key_value_heads": 1},
        biases={"head_dim": 8, "attention_bias": True},
        odd=_ODD,
    )
    | of(
        "Gemma2",
        plain={"head_dim": 16, "sliding_window": 7},
        caps={"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        scalar={"head_dim": 8, "query_pre_attn_scalar": 24, "sliding_window": 64, "attention_bias": True},
        uncapped={"head_dim": 12, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 5},
    )
    | of(
        "Gemma3Text",
        plain={"head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
        long_window={"head_dim": 16, "sliding_window": 4096},
        scaled={
            "head_dim": 8,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": _LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        caps={"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 3.0},
        odd=_ODD | {"sliding_window": 9, "attention_bias": True},
    )
    | of(
        "Olmo2",
        plain={},
        tied={"tie_word_embeddings": True},
        biases={"attention_bias": True, "num_key_value_heads": 4},
        llama3={"rope_parameters": _LLAMA3, "num_key_value_heads": 1},
    )
    | of(
        "Olmo3",
        plain={"sliding_window": 7},
        yarn={
            "sliding_window": 7,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        tied={"sliding_window": 64, "tie_word_embeddings": True},
        biases={"sliding_window": 5, "attention_bias": True, "num_key_value_heads": 4},
    )
    | of(
        "Granite",
        plain={
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0625,
            "logits_scaling": 8.0,
        },
        biases={"attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.3, "embedding_multiplier": 3.0},
        tied={"tie_word_embeddings": True, "attention_multiplier": 0.2, "logits_scaling": 5.0},
        llama3={"rope_parameters": _LLAMA3, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    )
    | of(
        "SmolLM3",
        plain={},
        each_second={"no_rope_layer_interval": 2, "tie_word_embeddings": False},
        listed={"no_rope_layers": [0, 1, 1, 0], "attention_bias": True},
        window={"use_sliding_window": True, "sliding_window": 7, "mlp_bias": True},
        none={"no_rope_layers": [1, 1, 1, 1], "rope_parameters": _YARN},
    )
    | of(
        "Phi3",
        plain={},
        partial={"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        longrope={"rope_parameters": _longrope(4), "original_max_position_embeddings": 64},
        window={"sliding_window": 7, "tie_word_embeddings": True, "num_key_value_heads": 4},
    )
    | of(
        "Starcoder2",
        plain={},
        window={"sliding_window": 7, "tie_word_embeddings": False},
        unbiased={"use_bias": False},
        odd={key: value for key, value in _ODD.items() if key != "head_dim"} | {"num_key_value_heads": 3},
    )
    | of(
        "Nemotron",
        plain={},
        biases={"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        partial={"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}},
        odd=_ODD | {"head_dim": 20},
    )
    | of(
        "GPTNeoX",
        parallel={"rope_parameters": _PARTIAL},
        sequential={"use_parallel_residual": False, "rope_parameters": _PARTIAL, "hidden_act": "gelu_new"},
        whole={"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        odd={"attention_bias": False, "hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 37},
    )
    | of(
        "Phi",
        plain={"rope_parameters": _PARTIAL},
        normed={"qk_layernorm": True, "rope_parameters": _PARTIAL, "num_key_value_heads": 4},
        tied={"tie_word_embeddings": True},
        activation={"hidden_act": "gelu", "num_key_value_heads": 1},
    )
    | of(
        "Mixtral",
        plain={"num_local_experts": 4},
        window=_WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 1},
        tied={"tie_word_embeddings": True, "num_local_experts": 3, "num_experts_per_tok": 3},
        yarn={"num_local_experts": 5, "head_dim": 16, "rope_parameters": _YARN},
    )
    | of(
        "Qwen3Moe",
        plain=_EXPERTS,
        normalized=_EXPERTS | {"norm_topk_prob": True, "head_dim": 16},
        window=_EXPERTS | _WINDOWED | {"use_sliding_window": True},
        tied=_EXPERTS | {"tie_word_embeddings": True, "num_experts_per_tok": 1},
    )
    | of(
        "StableLm",
        normed={"qk_layernorm": True, "use_parallel_residual": True, "rope_parameters": _PARTIAL},
        normed_sequential={"qk_layernorm": True, "num_key_value_heads": 4, "tie_word_embeddings": True},
        plain={"rope_parameters": _PARTIAL},
        parallel={"use_parallel_residual": True, "rope_parameters": _PARTIAL},
        biases={"use_qkv_bias": True, "num_key_value_heads": 4},
        tied={"tie_word_embeddings": True, "rope_parameters": _PARTIAL | {"partial_rotary_factor": 1.0}},
    )
    | GPT_FAMILIES
    | MULTI_MODAL_FAMILIES
)
"""The configurations by name."""
ONE_OF_EACH = list({tiny.prefix: name for name, tiny in reversed(FAMILIES.items())}.values())[::-1]
"""The first configuration of each architecture."""
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def kind_of(tiny: Tiny) -> str:
    """Return the model_type of a configuration."""
    return str(config_class(tiny.prefix).model_type)


def sees_images(tiny: Tiny) -> bool:
    """Return whether a configuration is that of a multi-modal model, whose language model is converted."""
    return "text_config" in tiny.changes


def save(folder: Path, tiny: Tiny, *, seed: int = 0) -> Any:
    """Save a random model with its tokenizer; no norm weight is one (or zero) and no bias is zero. Return the model."""
    import transformers

    tokens = save_tokenizer(folder)
    known = _TOKENS | {"vocab_size": tokens + 3}
    if sees_images(tiny):
        config, head = config_of(tiny, **known), "ForConditionalGeneration"
    else:
        options = SHAPES.get(tiny.prefix, SHAPE) | known | tiny.changes
        if tiny.prefix == "StableLm" and "qk_layernorm" in options and not is_transformers_5():
            pytest.skip("transformers 4 cannot create a StableLM with norms of heads")
        config = hf_config(tiny.prefix, **options)
        if getattr(config, "attn_logit_softcapping", None):  # transformers 4 takes a kernel without it
            config._attn_implementation = "eager"
        head = "LMHeadModel" if tiny.prefix == "GPT2" else "ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, tiny.prefix.removesuffix("Text") + head)(config).eval()
    zero_centered = tiny.prefix.startswith(("Gemma", "Nemotron"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif "bias" in name:
                parameter.normal_(std=0.5)
            else:
                parameter.uniform_(-0.5, 0.5) if zero_centered else parameter.uniform_(0.5, 1.5)
    write(folder, model, tiny.form)
    return model
