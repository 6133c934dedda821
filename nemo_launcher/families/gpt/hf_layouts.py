# SPDX-License-Identifier: Apache-2.0
"""The layouts of Hugging Face in which a GPT can be written: Llama, Qwen2 and GPT-2."""

from __future__ import annotations

from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.hf_layout import HuggingFaceLayout
from nemo_launcher.families.hf_table import Module, StackTable, Table
from nemo_launcher.megatron.rotary import Rotary

_LLAMA = Table(
    outside=(
        Module("embedding.word_embeddings", ("model.embed_tokens",)),
        Module("decoder.final_layernorm", ("model.norm",)),
        Module("output_layer", ("lm_head",)),
    ),
    stacks=(
        StackTable(
            "decoder",
            "model.layers.{}.",
            (
                Module("input_layernorm", ("input_layernorm",)),
                Module(
                    "self_attention.linear_qkv",
                    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    heads="qkv",
                ),
                Module("self_attention.linear_proj", ("self_attn.o_proj",)),
                Module("pre_mlp_layernorm", ("post_attention_layernorm",)),
                Module("mlp.linear_fc1", ("mlp.gate_proj", "mlp.up_proj")),
                Module("mlp.linear_fc2", ("mlp.down_proj",)),
            ),
        ),
    ),
)
_GPT2 = Table(
    outside=(
        Module("embedding.word_embeddings", ("transformer.wte",)),
        Module("embedding.position_embeddings", ("transformer.wpe",)),
        Module("decoder.final_layernorm", ("transformer.ln_f",)),
        Module("output_layer", ("lm_head",)),
    ),
    stacks=(
        StackTable(
            "decoder",
            "transformer.h.{}.",
            (
                Module("input_layernorm", ("ln_1",)),
                Module("self_attention.linear_qkv", ("attn.c_attn",), heads="qkv", transposed=True),
                Module("self_attention.linear_proj", ("attn.c_proj",), transposed=True),
                Module("pre_mlp_layernorm", ("ln_2",)),
                Module("mlp.linear_fc1", ("mlp.c_fc",), transposed=True),
                Module("mlp.linear_fc2", ("mlp.c_proj",), transposed=True),
            ),
        ),
    ),
)


def _llama_configuration(shape: GPTShape) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.kv_channels,
        "hidden_act": "silu",
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.layernorm_epsilon,
        "rope_parameters": _rope(shape.rotary),
        "tie_word_embeddings": shape.share_embeddings_and_output_weights,
    }


def _rope(rotary: Rotary) -> dict[str, object]:
    """Return transformers' settings of rotary positions; older versions read `rope_type` as `default`."""
    if rotary.scaling is not None:
        return {
            "rope_type": "llama3",
            "rope_theta": rotary.base,
            "factor": rotary.scaling.scale_factor,
            "low_freq_factor": rotary.scaling.low_freq_factor,
            "high_freq_factor": rotary.scaling.high_freq_factor,
            "original_max_position_embeddings": int(rotary.scaling.old_context_len),
        }
    if rotary.interpolation_factor != 1:
        return {"rope_type": "linear", "rope_theta": rotary.base, "factor": rotary.interpolation_factor}
    return {"rope_type": "default", "rope_theta": rotary.base}


def _gpt2_configuration(shape: GPTShape) -> dict[str, object]:
    return {
        "n_embd": shape.hidden_size,
        "n_inner": shape.ffn_hidden_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_attention_heads,
        "n_positions": shape.max_position_embeddings,
        "activation_function": "gelu_new",
        "vocab_size": shape.vocab_size,
        "layer_norm_epsilon": shape.layernorm_epsilon,
        "tie_word_embeddings": shape.share_embeddings_and_output_weights,
    }


def _layout(kind: str, architecture: str) -> HuggingFaceLayout[GPTShape]:
    return HuggingFaceLayout(
        kind=kind,
        architecture=architecture,
        task="CAUSAL_LM",
        table=lambda shape: _LLAMA,
        configuration=_llama_configuration,
    )


LAYOUTS = (
    _layout("llama", "LlamaForCausalLM"),
    _layout("qwen2", "Qwen2ForCausalLM"),
    HuggingFaceLayout(
        kind="gpt2",
        architecture="GPT2LMHeadModel",
        task="CAUSAL_LM",
        table=lambda shape: _GPT2,
        configuration=_gpt2_configuration,
    ),
)
"""Those of a GPT, in the order in which they are tried."""
