# SPDX-License-Identifier: Apache-2.0
"""The keys of published config.json files are all accounted for, with their published kinds of values."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_launcher.checkpoint.architectures.multimodal import MULTI_MODAL
from nemo_launcher.checkpoint.hf_architectures import config_problems
from nemo_launcher.checkpoint.language_model import language_problems

pytestmark = pytest.mark.unit

_ANY: dict[str, Any] = {
    "_name_or_path": "a/model",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
    "use_cache": True,
    "vocab_size": 1000,
}
_DECODER: dict[str, Any] = _ANY | {
    "attention_dropout": 0.0,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA = _DECODER | {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_scaling": None}
_GEMMA = _DECODER | {"attention_bias": False, "head_dim": 16, "rms_norm_eps": 1e-6, "pad_token_id": 0}
_GEMMA |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
_PHI = _DECODER | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "rope_scaling": None}
_GPT = _ANY | {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "activation_function": "gelu_new"}
_GPT |= {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "n_ctx": 128}
_GPT |= {"summary_activation": None, "summary_first_dropout": 0.1, "summary_type": "cls_index"}
_GPT |= {"summary_proj_to_labels": True, "summary_use_proj": True, "task_specific_params": {"text-generation": {}}}
_T5 = _ANY | {"d_ff": 128, "d_kv": 16, "d_model": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
_T5 |= {"decoder_start_token_id": 0, "dropout_rate": 0.1, "initializer_factor": 1.0, "is_encoder_decoder": True}
_T5 |= {"layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
_T5 |= {"feed_forward_proj": "gated-gelu", "output_past": True, "pad_token_id": 0, "tie_word_embeddings": False}
_LONGROPE = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}

PUBLISHED: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _LLAMA | {"pretraining_tp": 1, "mlp_bias": False, "attention_bias": False, "head_dim": 16},
    "LlamaForCausalLM (SmolLM2)": _LLAMA
    | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    "MistralForCausalLM": _LLAMA | {"sliding_window": 4096, "head_dim": 16},
    "Qwen2ForCausalLM": _LLAMA | {"max_window_layers": 21, "sliding_window": 131072, "use_sliding_window": False},
    "Qwen3ForCausalLM": _LLAMA
    | {"attention_bias": False, "head_dim": 128, "max_window_layers": 28, "sliding_window": None}
    | {"use_sliding_window": False},
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}
    | {"sliding_window": 4096, "sliding_window_size": 4096, "cache_implementation": "hybrid"},
    "Gemma3ForCausalLM": _GEMMA
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "query_pre_attn_scalar": 256}
    | {"rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6}
    | {"cache_implementation": "hybrid"},
    "Olmo2ForCausalLM": _LLAMA | {"attention_bias": False, "pad_token_id": 1},
    "Olmo3ForCausalLM": _LLAMA
    | {"attention_bias": False, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}
    | {"rope_scaling": _YARN | {"attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0}},
    "GraniteForCausalLM": _LLAMA
    | {"attention_bias": False, "mlp_bias": False, "attention_multiplier": 0.015, "embedding_multiplier": 12.0}
    | {"logits_scaling": 8.0, "residual_multiplier": 0.22},
    "SmolLM3ForCausalLM": _LLAMA
    | {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 2, "max_window_layers": 28}
    | {"no_rope_layer_interval": 4, "no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2}
    | {"sliding_window": None, "use_sliding_window": False},
    "Phi3ForCausalLM": _PHI
    | {"hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "auto_map": {"AutoConfig": "a.B"}}
    | {"original_max_position_embeddings": 4096, "sliding_window": 2047, "pad_token_id": 32000}
    | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}
    | {
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    },
    "PhiForCausalLM": _PHI
    | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4, "qk_layernorm": False},
    "Starcoder2ForCausalLM": _DECODER
    | {"activation_function": "gelu", "hidden_act": "gelu_pytorch_tanh", "mlp_type": "default", "use_bias": True}
    | {"norm_epsilon": 1e-5, "norm_type": "layer_norm", "sliding_window": 4096, "embedding_dropout": 0.1}
    | {"residual_dropout": 0.1, "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True}
    | {"scale_attn_weights": True, "layer_norm_epsilon": 1e-5},
    "NemotronForCausalLM": _DECODER
    | {"hidden_act": "relu2", "head_dim": 16, "norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    | {"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
    "StableLmForCausalLM": _DECODER
    | {"hidden_act": "silu", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "qk_layernorm": False}
    | {"use_parallel_residual": False, "use_qkv_bias": True, "hidden_dropout": 0.0, "rope_scaling": None},
    "MixtralForCausalLM": _DECODER
    | {"hidden_act": "silu", "num_local_experts": 8, "num_experts_per_tok": 2, "output_router_logits": False}
    | {"router_aux_loss_coef": 0.02, "sliding_window": None},
    "Qwen3MoeForCausalLM": _DECODER
    | {"attention_bias": False, "decoder_sparse_step": 1, "head_dim": 16, "hidden_act": "silu"}
    | {"max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 32, "norm_topk_prob": True}
    | {"num_experts": 8, "num_experts_per_tok": 2, "output_router_logits": False, "router_aux_loss_coef": 0.001}
    | {"rope_scaling": None, "sliding_window": None, "use_sliding_window": False},
    "GPTNeoXForCausalLM": _ANY
    | {"hidden_act": "gelu", "hidden_size": 64, "intermediate_size": 256, "layer_norm_eps": 1e-5}
    | {"max_position_embeddings": 2048, "num_attention_heads": 4, "num_hidden_layers": 2, "rotary_pct": 0.25}
    | {"rotary_emb_base": 10000, "tie_word_embeddings": False, "use_parallel_residual": True}
    | {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "classifier_dropout": 0.1},
    "GPTJForCausalLM": _GPT
    | {"gradient_checkpointing": False, "rotary": True, "rotary_dim": 16, "scale_attn_weights": True}
    | {"tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer"},
    "FalconForCausalLM": _ANY
    | {"alibi": False, "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "bias": False}
    | {"hidden_dropout": 0.0, "hidden_size": 64, "layer_norm_epsilon": 1e-5, "multi_query": True}
    | {"new_decoder_architecture": False, "num_attention_heads": 4, "num_hidden_layers": 2, "num_kv_heads": 4}
    | {"parallel_attn": True},
    "FalconForCausalLM (Falcon-RW)": _ANY
    | {"alibi": True, "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "bias": True}
    | {"auto_map": {"AutoConfig": "a.B"}, "hidden_dropout": 0.0, "hidden_size": 64, "layer_norm_epsilon": 1e-5}
    | {"multi_query": False, "new_decoder_architecture": False, "num_attention_heads": 4, "num_hidden_layers": 2}
    | {"parallel_attn": False},
    "BloomForCausalLM": _ANY
    | {"apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "n_embed": 64, "n_layer": 2}
    | {"attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "hidden_dropout": 0.0, "n_inner": None}
    | {"layer_norm_epsilon": 1e-5, "masked_softmax_fusion": True, "num_attention_heads": 4, "offset_alibi": 100}
    | {"pretraining_tp": 2, "skip_bias_add": True, "skip_bias_add_qkv": False, "pad_token_id": 3, "unk_token_id": 0}
    | {"seq_length": 2048, "slow_but_exact": False},
    "OPTForCausalLM": _ANY
    | {"activation_dropout": 0.0, "activation_function": "relu", "attention_dropout": 0.0, "dropout": 0.1}
    | {"do_layer_norm_before": True, "ffn_dim": 256, "hidden_size": 64, "init_std": 0.02, "layerdrop": 0.0}
    | {"max_position_embeddings": 2048, "num_attention_heads": 4, "num_hidden_layers": 2, "prefix": "</s>"}
    | {"word_embed_proj_dim": 64, "_remove_final_layer_norm": False, "pad_token_id": 1},
    "GPT2LMHeadModel": _GPT | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "T5ForConditionalGeneration": _T5 | {"n_positions": 512, "classifier_dropout": 0.0, "dense_act_fn": "gelu_new"},
    "MT5ForConditionalGeneration": _T5 | {"tokenizer_class": "T5Tokenizer", "max_length": 20, "num_beams": 4},
    "UMT5ForConditionalGeneration": _T5 | {"tokenizer_class": "T5Tokenizer", "scalable_attention": True},
}

_MISTRAL3 = {
    "dtype": "bfloat16",
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"model_type": "pixtral"},
    "vision_feature_layer": -1,
}
_GEMMA3 = {
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
_LINEAR = {"factor": 8.0, "rope_type": "linear"}
WHOLE: dict[str, dict[str, Any]] = {
    "Gemma3ForConditionalGeneration (4B)": _GEMMA3
    | {
        "text_config": {"hidden_size": 64, "intermediate_size": 128, "model_type": "gemma3_text"}
        | {"num_hidden_layers": 2, "rope_scaling": _LINEAR, "sliding_window": 1024}
    },
    "Gemma3ForConditionalGeneration (27B, saved again)": _GEMMA3
    | {"bos_token_id": 2, "pad_token_id": 0, "unsloth_fixed": True, "use_cache": True}
    | {
        "text_config": {key: value for key, value in _GEMMA.items() if key != "hidden_act"}
        | {"_sliding_window_pattern": 6, "cache_implementation": "hybrid", "final_logit_softcapping": None}
        | {"layer_types": ["sliding_attention", "full_attention"], "model_type": "gemma3_text"}
        | {"query_pre_attn_scalar": 168, "rope_local_base_freq": 10000.0, "rope_scaling": _LINEAR}
        | {"sliding_window": 1024, "use_bidirectional_attention": False}
    },
    "Mistral3ForConditionalGeneration (Small 3.1)": _MISTRAL3
    | {
        "text_config": {key: value for key, value in _LLAMA.items() if key != "tie_word_embeddings"}
        | {"head_dim": 16, "model_type": "mistral", "sliding_window": None}
    },
    "Mistral3ForConditionalGeneration (Ministral 3)": _MISTRAL3
    | {
        "text_config": _LLAMA
        | {"head_dim": 16, "model_type": "ministral3", "sliding_window": None, "tie_word_embeddings": True}
        | {"rope_parameters": _YARN | {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "type": "yarn"}}
        | {"rope_theta": None}
    },
}


def test_a_sliced_bloom_is_refused() -> None:
    """transformers would leave out biases."""
    config = PUBLISHED["BloomForCausalLM"] | {"architectures": ["BloomForCausalLM"], "slow_but_exact": True}
    (problem,) = config_problems(config, "config.json")
    assert "slow_but_exact with pretraining_tp 2" in problem.what


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_is_known(name: str) -> None:
    config = PUBLISHED[name] | {"architectures": [name.partition(" ")[0]]}
    assert config_problems(config, "config.json") == []


@pytest.mark.parametrize("name", WHOLE)
def test_every_published_key_of_multi_modal_models_is_known(name: str) -> None:
    architecture = name.partition(" ")[0]
    config = WHOLE[name] | {"architectures": [architecture]}
    assert language_problems(config, MULTI_MODAL[architecture], "config.json") == []
