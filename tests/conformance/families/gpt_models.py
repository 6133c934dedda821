# SPDX-License-Identifier: Apache-2.0
"""The configurations of older architectures, whose shapes have other keys."""

from __future__ import annotations

from typing import Any

from tests.conformance.families.tiny import SHAPE, Tiny, of

_N_SHAPE: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "GPT2": _N_SHAPE,
    "GPTJ": _N_SHAPE,
    "GPTNeoX": {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"},
    "Falcon": {key: SHAPE[key] for key in SHAPE if key not in ("num_key_value_heads", "intermediate_size")},
    "Bloom": {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "OPT": {key: SHAPE[key] for key in SHAPE if key not in ("num_key_value_heads", "intermediate_size")},
}
"""The shapes of families with other keys."""
_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
GPT_FAMILIES: dict[str, Tiny] = (
    of(
        "GPTJ",
        plain={"rotary_dim": 4},
        whole={"rotary_dim": 8},
        inner={"rotary_dim": 2, "n_inner": 80, "activation_function": "gelu"},
        tied={"rotary_dim": 6, "tie_word_embeddings": True},
    )
    | of(
        "Falcon",
        one_key={"new_decoder_architecture": False, "multi_query": True},
        groups={"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        all_keys={"multi_query": False, "tie_word_embeddings": False, "bias": True},
        sequential={"parallel_attn": False, "bias": True, "ffn_hidden_size": 37},
        one_norm={"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        alibi=_RW | {"num_attention_heads": 12, "hidden_size": 48},
        alibi_even=_RW | {"tie_word_embeddings": False},
        alibi_side={"alibi": True, "num_attention_heads": 6, "hidden_size": 36, "multi_query": True},
        alibi_groups={"alibi": True, "new_decoder_architecture": True, "num_attention_heads": 10, "num_kv_heads": 2}
        | {"hidden_size": 40},
    )
    | of(
        "Bloom",
        plain={},
        heads={"n_head": 12, "hidden_size": 48},
        untied={"n_head": 6, "hidden_size": 30, "tie_word_embeddings": False},
        narrow={"n_head": 16, "pretraining_tp": 2, "layer_norm_epsilon": 1e-3},
    )
    | of(
        "OPT",
        plain={"ffn_dim": 48},
        untied={"ffn_dim": 37, "tie_word_embeddings": False},
        gelu={"ffn_dim": 48, "activation_function": "gelu"},
        wide={"ffn_dim": 80, "num_attention_heads": 2},
    )
    | of(
        "GPT2",
        plain={},
        inner={"n_inner": 80},
        untied={"tie_word_embeddings": False},
        heads={"n_head": 2, "activation_function": "gelu_pytorch_tanh"},
    )
)
"""The configurations by name."""
