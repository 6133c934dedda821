# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face's GPT-2 to a NeMo GPT checkpoint: configuration and weight map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

# all decoders have the same tokenizer section and stored names
from nemo_launcher.families.gpt.hf_llama import to_stored as to_stored
from nemo_launcher.families.gpt.hf_llama import tokenizer_section as tokenizer_section

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"

_LAYER_MODULES = {
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attention.linear_proj",
    "ln_2": "pre_mlp_layernorm",
    "mlp.c_fc": "mlp.linear_fc1",
    "mlp.c_proj": "mlp.linear_fc2",
}


def nemo_config(config: PretrainedConfig, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the `model_config.yaml` keys for a Hugging Face GPT2Config; the weights are not needed."""
    return {
        "mcore_gpt": True,
        "transformer_engine": True,
        "encoder_seq_length": config.n_positions,
        "max_position_embeddings": config.n_positions,
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "ffn_hidden_size": config.n_inner or 4 * config.n_embd,
        "num_attention_heads": config.n_head,
        "normalization": "layernorm",
        "layernorm_epsilon": config.layer_norm_epsilon,
        "activation": "gelu",
        "openai_gelu": True,  # the tanh approximation, GPT-2's gelu_new
        "bias": True,
        "position_embedding_type": "learned_absolute",
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "hidden_dropout": config.resid_pdrop,
        "attention_dropout": config.attn_pdrop,
        "ffn_dropout": 0.0,
        "bias_activation_fusion": False,
        "make_vocab_size_divisible_by": 128,
    }


def convert_weights(weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """Return the weights under our names (families.gpt.layouts).

    GPT-2 stores matrices as [in, out] (Conv1D), with queries, keys and values concatenated. Here they are [out, in] and
    interleaved by head: [heads, 3, head_dim, hidden].
    """
    heads, hidden = config.n_head, config.n_embd
    result = {
        "embedding.word_embeddings.weight": weights["transformer.wte.weight"],
        "embedding.position_embeddings.weight": weights["transformer.wpe.weight"],
        "decoder.final_layernorm.weight": weights["transformer.ln_f.weight"],
        "decoder.final_layernorm.bias": weights["transformer.ln_f.bias"],
    }
    if not config.tie_word_embeddings:
        result["output_layer.weight"] = weights["lm_head.weight"]
    for number in range(config.n_layer):
        theirs, ours = f"transformer.h.{number}.", f"decoder.layers.{number}."
        for source, target in _LAYER_MODULES.items():
            weight = weights[f"{theirs}{source}.weight"]
            result[f"{ours}{target}.weight"] = weight.t() if weight.dim() == 2 else weight
            result[f"{ours}{target}.bias"] = weights[f"{theirs}{source}.bias"]
        qkv = weights[f"{theirs}attn.c_attn.weight"].t().reshape(3, heads, -1, hidden)
        bias = weights[f"{theirs}attn.c_attn.bias"].view(3, heads, -1)
        result[f"{ours}self_attention.linear_qkv.weight"] = qkv.transpose(0, 1).reshape(-1, hidden)
        result[f"{ours}self_attention.linear_qkv.bias"] = bias.transpose(0, 1).flatten()
    return result
