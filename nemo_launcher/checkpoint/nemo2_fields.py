# SPDX-License-Identifier: Apache-2.0
"""The fields of a NeMo 2 model configuration: which are read, which change nothing, and which must have their default.

A configuration is a megatron-core TransformerConfig with the fields of NeMo's GPTConfig. Sources: megatron-core 0.7 to
0.16, transformer_config.py and model_parallel_config.py; NeMo 2.0 to 2.5, nemo/collections/llm/gpt/model.
"""

from __future__ import annotations

import re

_MODELS = "nemo.collections.llm.gpt.model."
CLASSES = re.compile(
    re.escape(_MODELS)
    + r"(base\.GPTConfig|llama\.(Code)?Llama[23]?Config|llama\.Llama3[12]Config|mistral\.Mistral(NeMo)?(2407)?Config"
    r"|qwen2\.Qwen2Config|qwen2\.Qwen25Config|qwen3\.Qwen3Config|nemotron\.Nemotron[34]?Config)(\d+P?\d*[MB])?"
)
"""The classes whose models are computed: they differ from GPTConfig only in the values of their fields."""
SCALED = re.compile(re.escape(_MODELS) + r"llama\.Llama3[12]Config(\d+B)?")
"""The classes whose `configure_model` scales the rotary frequencies."""
SCALING = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")
"""The additional fields of these classes; `model_config.yaml` has the same names."""

SAME = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"),
    *("layernorm_epsilon", "layernorm_zero_centered_gamma", "qk_layernorm", "softmax_scale"),
    *("position_embedding_type", "rotary_base", "rotary_interleaved", "seq_len_interpolation_factor"),
    *("share_embeddings_and_output_weights", "bias_activation_fusion", "make_vocab_size_divisible_by"),
    *("hidden_dropout", "attention_dropout", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
)
"""Fields with the same name and meaning in `model_config.yaml`."""
RENAMED = {"rotary_percent": "rotary_percentage", "add_bias_linear": "bias", "add_qkv_bias": "qkv_bias"}
"""Fields with another name in `model_config.yaml`."""
OTHERS = (
    *("seq_length", "normalization", "activation_func", "gated_linear_unit", "window_size", "window_attn_skip_freq"),
    *("fp16", "bf16"),
)
"""Fields whose values are translated."""
_OPTIONAL = (
    *("qk_layernorm", "softmax_scale", "window_size", "window_attn_skip_freq", "fp16", "bf16"),
    *("make_vocab_size_divisible_by", "hidden_dropout", "attention_dropout"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size"),
)
REQUIRED = tuple(name for name in (*SAME, *RENAMED, *OTHERS) if name not in _OPTIONAL)
"""Fields that every release writes; the classes have different defaults for them."""

NORMALIZATIONS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
_NEMO_ACTIVATIONS = "nemo.collections.llm.fn.activation."
ACTIVATIONS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("torch.nn.functional.gelu", "torch._C._nn.gelu"), ("gelu", "geglu")),
    "torch.nn.functional.silu": ("silu", "swiglu"),
    "torch.nn.functional.relu": ("relu", "reglu"),
    **dict.fromkeys(
        (f"{_NEMO_ACTIVATIONS}squared_relu", "megatron.core.activations.squared_relu"), ("squared-relu", None)
    ),
}
"""A function's name -> NeMo 1's activation without and with a gate."""

FIXED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        (
            *("apply_residual_connection_post_layernorm", "qk_l2_norm", "multi_latent_attention"),
            *("attention_output_gate", "heterogeneous_block_specs", "is_hybrid_model", "use_kitchen"),
            *("use_transformer_engine_full_layer_spec", "use_te_activation_func"),
        ),
        (False, None),
    ),
    **dict.fromkeys(
        (
            *("num_moe_experts", "activation_func_clamp_value", "no_rope_freq", "experimental_attention_variant"),
            *("linear_attention_freq", "mrope_section", "quant_recipe"),
        ),
        (None,),
    ),
    "mtp_num_layers": (None, 0),
    "softmax_type": ("vanilla", None),
    "glu_linear_offset": (0, None),
}
"""Fields that change the results, with the values that are computed."""
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "transformer_layer_spec": tuple(
        f"{_MODELS}base.{name}" for name in ("default_layer_spec", "transformer_engine_layer_spec", "local_layer_spec")
    ),
    "forward_step_fn": (f"{_MODELS}base.gpt_forward_step",),
    "data_step_fn": (f"{_MODELS}base.gpt_data_step",),
}
"""Fields with a function, and the names of the functions that are computed."""

_HARMLESS = (
    # distribution over devices and communication
    r"(tp_comm|pipeline_model_parallel|virtual_pipeline|expert|batch_p2p|overlap|num_layers_in)_\w+|cpu_offloading(_\w+)?",
    r"sequence_parallel|(hierarchical_)?context_parallel_sizes?|max_seqlen_per_dp_cp_rank|hybrid_context_parallel",
    r"use_ring_exchange_p2p|variable_seq_lengths|deallocate_pipeline_outputs|defer_embedding_wgrad_compute|cp_comm_type",
    r"wgrad_deferral_limit|microbatch_group_size_per_vp_stage|_cpu_offloading_context|delay_wgrad_compute|parallel_output",
    r"ep_overlap_early_attn_memory_release|mtp_standalone|scatter_embedding_sequence_parallel|symmetric_ar_type",
    r"account_for_(embedding|loss)_in_pipeline_split|async_tensor_model_parallel_allreduce|barrier_with_L1_time",
    # training: functions of the loop, gradients, initial values, loss
    r"\w+_(grads|scale|sync)_func|timers|num_microbatches_with_partial_activation_checkpoints|perform_initialization",
    r"use_cpu_initialization|init_method(_std)?|output_layer_init_method|embedding_init_method(_std)?|test_mode",
    r"init_model_with_meta_device|gradient_accumulation_fusion|calculate_per_token_loss|mtp_loss_scaling_factor",
    r"mtp_enabled|fp16_lm_cross_entropy|cross_entropy_(loss_fusion|fusion_impl)|config_logger_dir|generation_config",
    r"qk_clip(_alpha|_threshold)?|log_max_attention_logit",
    # memory: recomputation, offloading
    r"recompute_\w+|distribute_saved_activations|offload_modules|min_offloaded_tensor_size",
    r"fine_grained_activation_offloading|activation_func_fp8_input_store",
    # the precision and the kernels of the same computation
    r"fp[48](_\w+)?|params_dtype|pipeline_dtype|autocast_dtype|enable_autocast|deterministic_mode|first_last_layers_bf16",
    r"num_layers_at_(start|end)_in_bf16|tp_only_amax_red|fp32_residual_connection|attention_softmax_in_fp32",
    r"disable_\w+|attention_backend|transformer_impl|\w+_fusion|persist_layer_norm|memory_efficient_layer_norm",
    r"use_fused_weighted_squared_relu|fused_single_qkv_rope|apply_query_key_layer_scaling|batch_invariant_mode",
    r"use_te_rng_tracker|kitchen_attention_backend|use_kitchen_attention|use_transformer_engine_op_fuser",
    r"get_attention_mask_from_fusion|clone_scatter_output_in_embedding",
    # generation, and CUDA graphs
    r"(enable|external)_cuda_graph|cuda_graph_\w+|flash_decode|inference_\w+|use_inference_optimized_layers",
    r"mlp_chunks_for_prefill",
    # what other layers use, which FIXED excludes
    r"(moe|mamba|dsa|linear)_\w+|use_mamba_mem_eff_path|hetereogenous_dist_checkpoint",
    # sizes that the weights imply
    r"vocab_size|max_position_embeddings|should_pad_vocab",
)
HARMLESS = re.compile("|".join(f"(?:{pattern})" for pattern in _HARMLESS))
"""Fields that do not change what a trained model computes, apart from rounding."""
