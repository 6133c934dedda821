# SPDX-License-Identifier: Apache-2.0
"""Type checks of the keys that are read from `model_config.yaml`, of a base or an adapter, when it is opened.

A configuration returned by `checked_config` has sections, numbers and texts where the code expects them, and sizes
within the limits of models. Keys that are not read may have any value. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from nemo_launcher.errors import Problem, UserError

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 22
"""The maximum width of hidden states, feed-forward and heads; the largest published feed-forward is 2**16."""
MAX_TOKENS = 1 << 30
MAX_SENTINELS = 10_000
"""The maximum number of sentinels in a T5's vocabulary; NeMo's default is 100."""
MAX_RANKS = 1 << 20
MAX_TASKS = 10_000

Check = Callable[[object], bool]
Kind = tuple[str, Check]


def _whole(least: int, most: int) -> Kind:
    return (
        f"a whole number from {least} to {most:,}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _number(what: str, fits: Callable[[float], bool]) -> Kind:
    return what, lambda value: _is_number(value) and math.isfinite(value) and fits(value)


_LAYERS = _whole(1, MAX_LAYERS)
_WIDTH = _whole(1, MAX_WIDTH)
_TOKENS = _whole(1, MAX_TOKENS)
_COUNT = _whole(0, MAX_TOKENS)
_RANKS = _whole(1, MAX_RANKS)
_FLAG: Kind = ("True or False", lambda value: value in (True, False) and isinstance(value, (bool, int)))
_TEXT: Kind = ("a text", lambda value: isinstance(value, str))
_TEXTS: Kind = ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
_SECTION: Kind = ("a section (key: value)", lambda value: isinstance(value, dict))
_POSITIVE = _number("a number above 0", lambda value: value > 0)
_PROBABILITY = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_WINDOW: Kind = (
    "a whole number or a list of two",
    lambda v: all(isinstance(n, int) and not isinstance(n, bool) for n in (v if isinstance(v, list) else [v])),
)

_PATTERN: Kind = (
    "a whole number or a list of 0 and 1",
    lambda v: all(isinstance(n, int) and not isinstance(n, bool) for n in (v if isinstance(v, list) else [v])),
)
_NUMBERS: Kind = (
    "a list of numbers above 0",
    lambda v: isinstance(v, list) and all(isinstance(n, int | float) and 0 < n < math.inf for n in v),
)

# Keys of a stack of layers: at the top level of a GPT's configuration; at the top level or in the sections of a T5's.
_STACK: dict[str, Kind] = {
    "num_layers": _LAYERS,
    **dict.fromkeys(("hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"), _WIDTH),
    "kv_channels": _WIDTH,
    **dict.fromkeys(("max_position_embeddings", "encoder_seq_length", "seq_length", "decoder_seq_length"), _TOKENS),
    **dict.fromkeys(("activation", "normalization", "position_embedding_type", "attention_type", "arch"), _TEXT),
    "transformer_block_type": _TEXT,
    "layernorm_epsilon": _number("a number above 0 and below 1", lambda value: 0 < value < 1),
    **dict.fromkeys(("bias", "qkv_bias", "bias_activation_fusion", "openai_gelu", "headscale"), _FLAG),
    **dict.fromkeys(("normalize_attention_scores", "apply_query_key_layer_scaling"), _FLAG),
    **dict.fromkeys(("layernorm_zero_centered_gamma", "megatron_legacy", "relative_position_bias"), _FLAG),
    "relative_position_bias_self_attention_only": _FLAG,
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), _TOKENS),
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "ffn_dropout"), _PROBABILITY),
    **dict.fromkeys(("num_moe_experts", "moe_router_topk"), _whole(1, MAX_WIDTH)),
    "moe_router_pre_softmax": _FLAG,
    "num_self_attention_per_cross_attention": _whole(1, MAX_LAYERS),
}
_MODEL: dict[str, Kind] = {
    **_STACK,
    **dict.fromkeys(("tensor_model_parallel_size", "pipeline_model_parallel_size"), _RANKS),
    "pipeline_model_parallel_split_rank": _whole(0, MAX_RANKS),
    **dict.fromkeys(("rotary_base", "seq_len_interpolation_factor", "scale_factor"), _POSITIVE),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "old_context_len"), _POSITIVE),
    "rotary_percentage": _number("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    **dict.fromkeys(("share_embeddings_and_output_weights", "share_token_embeddings", "mcore_gpt"), _FLAG),
    **dict.fromkeys(("share_decoder_tokens_head_embeddings", "tokens_head_bias"), _FLAG),
    **dict.fromkeys(("rotary_interleaved", "apply_embedding_scaling", "scale_positional_embedding"), _FLAG),
    **dict.fromkeys(("nemo_compat", "sequence_parallel", "answer_only_loss"), _FLAG),
    "window_size": _WINDOW,
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "softmax_scale", "logits_divisor"), _POSITIVE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "rotary_base_local"), _POSITIVE),
    **dict.fromkeys(("yarn_scaling_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast"), _POSITIVE),
    **dict.fromkeys(("yarn_beta_slow", "yarn_attention_factor", "longrope_attention_factor"), _POSITIVE),
    **dict.fromkeys(("qk_layernorm", "yarn_correction_range_round_to_int", "parallel_attention"), _FLAG),
    "embedding_layernorm": _FLAG,
    **dict.fromkeys(("qk_layernorm_width", "sublayer_norms", "alibi_bias"), _TEXT),
    **dict.fromkeys(("window_attn_skip_freq", "no_rope_freq"), _PATTERN),
    "longrope_short_factor": _NUMBERS,
    **dict.fromkeys(
        ("target", "language_model_path", "restore_from_path", "base_fingerprint", "base_checksum", "nemo_version"),
        _TEXT,
    ),
    "existing_tasks": _TEXTS,
    "new_tasks": _TEXTS,
    "seed": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    **dict.fromkeys(("encoder", "decoder", "tokenizer", "peft", "data", "inference"), _SECTION),
    **dict.fromkeys(("adapter_tuning", "ia3_tuning"), _SECTION),
    **dict.fromkeys(("converted_from", "rope_scaling", "base_settings"), _SECTION),
    "task_templates": (
        "a list of sections",
        lambda v: isinstance(v, list) and len(v) <= MAX_TASKS and all(isinstance(entry, dict) for entry in v),
    ),
}
_SECTIONS: dict[str, dict[str, Kind]] = {
    "encoder": _STACK,
    "decoder": _STACK,
    "tokenizer": {
        **dict.fromkeys(("library", "type", "model", "vocab_file", "merge_file", "delimiter"), _TEXT),
        "num_sentinel_tokens": _whole(0, MAX_SENTINELS),
        **dict.fromkeys(("add_sentinel_tokens_first", "add_sentinel_tokens_in_reverse_order"), _FLAG),
        **dict.fromkeys(("sentencepiece_legacy", "use_fast"), _FLAG),
    },
    "peft": {"peft_scheme": _TEXT, "adapter_tuning": _SECTION, "ia3_tuning": _SECTION},
    "adapter_tuning": {
        "adapter_dim": _WIDTH,
        "adapter_dropout": _PROBABILITY,
        **dict.fromkeys(("type", "norm_position", "norm_type", "column_init_method", "row_init_method"), _TEXT),
    },
    "data": {
        **dict.fromkeys(("add_bos", "add_eos", "add_sentinel_to_input", "add_eos_to_decoder_output"), _FLAG),
        "decoder_starts_with_pad": _FLAG,
        "max_seq_length": _TOKENS,
    },
    "inference": {
        **dict.fromkeys(("add_BOS", "greedy"), _FLAG),
        **dict.fromkeys(("tokens_to_generate", "min_tokens_to_generate", "top_k", "batch_size"), _COUNT),
    },
}
_TEMPLATE: dict[str, Kind] = {
    **dict.fromkeys(("taskname", "prompt_template", "truncate_field", "answer_field", "template_format"), _TEXT),
    "answer_only_loss": _FLAG,
    "total_virtual_tokens": _COUNT,
}


def checked_config(config: dict[str, object], source: str) -> dict[str, object]:
    """Return the configuration unchanged. Raises UserError with all keys of the wrong type."""
    problems = _problems(config, _MODEL, source)
    for name, kinds in _SECTIONS.items():
        section = config.get(name)
        if isinstance(section, dict):
            problems += _problems(section, kinds, f"{source}: {name}", ".")
    templates = config.get("task_templates")
    for number, entry in enumerate(templates if isinstance(templates, list) else ()):
        if isinstance(entry, dict):
            problems += _problems(entry, _TEMPLATE, f"{source}: task_templates[{number}]", ".")
    peft = config.get("peft")
    for name, section in peft.items() if isinstance(peft, dict) else ():
        if isinstance(section, dict):
            problems += _problems(section, _SECTIONS["adapter_tuning"], f"{source}: peft.{name}", ".")
    if problems:
        raise UserError(problems[:20])
    return config


def _problems(section: Mapping[str, object], kinds: Mapping[str, Kind], where: str, join: str = ": ") -> list[Problem]:
    """Return problems for keys with values of the wrong type; null and missing keys have NeMo's defaults."""
    return [
        Problem(f"{where}{join}{key}", f"{_short(section[key])} is not {what}", f"set it to {what}")
        for key, (what, fits) in kinds.items()
        if section.get(key) is not None and not fits(section[key])
    ]


def _short(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"a {'section' if isinstance(value, dict) else 'list'}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
