# SPDX-License-Identifier: Apache-2.0
"""GGUF files whose settings or tensors cannot be exact are refused, with what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_launcher.checkpoint.gguf_file import read_gguf
from nemo_launcher.checkpoint.sources import check_source
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from tests.gguf_cases import CASES, FACTORS, PLAIN, heads, window, written
from tests.gguf_files import write_gguf
from tests.gguf_models import SIZES, random_model, write_model
from tests.versions import hf_config

pytestmark = pytest.mark.unit

NAN = float("nan")
REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "unknown_key": ("qwen3", {"attention.scale": 0.5}, ["qwen3.attention.scale", "'0.5' is not supported"]),
    "not_causal": (
        "qwen3",
        {"attention.causal": False},
        ["qwen3.attention.causal", "False is not supported: tokens would see later"],
    ),
    "no_head_size": ("qwen3", {"attention.key_length": None}, ["qwen3.attention.key_length", "is absent"]),
    "other_values": ("qwen3", {"attention.value_length": 64}, ["value_length", "64 is not the size of a head, 128"]),
    "heads_of_text": ("qwen3", {"attention.head_count": "4"}, ["num_attention_heads", "'4' is not a whole number"]),
    "heads_per_layer": ("qwen3", {"attention.head_count_kv": [2, 2, 1]}, ["num_key_value_heads", "not a whole"]),
    "base_of_text": ("qwen2", {"rope.freq_base": "10000"}, ["qwen2.rope.freq_base", "is not a number above 1"]),
    "window_of_qwen": ("qwen2", window(8), ["qwen2.attention.sliding_window"]),
    "rope_type": ("qwen3", {"rope.scaling.type": "new"}, ["qwen3.rope.scaling.type", "'new' is not supported"]),
    "rope_factor": ("gemma3", {"rope.scaling.type": "linear"}, ["rope.scaling.factor", "None is not a number"]),
    "cap_of_text": ("gemma2", {"attn_logit_softcapping": "50"}, ["attn_logit_softcapping", "not a number above 0"]),
    "cap_of_nan": ("gemma2", {"final_logit_softcapping": NAN}, ["final_logit_softcapping", "not a number above 0"]),
    "window_of_text": ("gemma2", {"attention.sliding_window": "8"}, ["sliding_window '8'"]),
    "window_below_0": ("gemma2", window(0), ["sliding_window 0"]),
    "gemma_head_size": ("gemma2", {"attention.key_length": None}, ["gemma2.attention.key_length", "is absent"]),
    "gemma3_base": ("gemma3", {"rope.freq_base": None}, ["gemma3.rope.freq_base", "is absent"]),
    "local_base": ("gemma3", {"rope.freq_base_swa": NAN}, ["rope.freq_base_swa", "nan is not a number above 1"]),
    "pattern_0": ("gemma3", {"attention.sliding_window_pattern": 0}, ["sliding_window_pattern", "'0' is neither"]),
    "pattern_short": ("gemma3", {"attention.sliding_window_pattern": [True]}, ["for each of 7 layers"]),
    "layers": ("gemma3", {"block_count": 10**6}, ["num_hidden_layers", "exceed the limit"]),
    "no_window": ("phi3", {"attention.sliding_window": None}, ["phi3.attention.sliding_window", "is absent"]),
    "odd_rotary": ("phi3", {"rope.dimension_count": 7}, ["7 is not an even number up to the size of a head, 16"]),
    "wide_rotary": ("phi3", {"rope.dimension_count": 32}, ["32 is not an even number"]),
    "phi3_yarn": ("phi3", {"rope.scaling.type": "yarn"}, ["phi3.rope.scaling.type", "'yarn' is not supported"]),
    "phi3_no_factors": ("phi3", {"rope.scaling.type": "longrope"}, ["'longrope' is not supported"]),
    "phi3_magnitude": ("phi3", {"rope.scaling.attn_factor": 1.2}, ["attn_factor", "without rope_factors_short.weight"]),
    "phi3_heads": ("phi3", heads(8), ["8 is not the size of a head, 16"]),
    "tokenizer_key": (
        "qwen3",
        {"tokenizer.ggml.normalizer": "lower"},
        ["tokenizer.ggml.normalizer", "'lower' is not supported", "token ids might differ"],
    ),
    "gemma_prefix": (
        "gemma3",
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * SIZES["vocab_size"]},
        ["tokenizer.ggml.add_space_prefix", "is not false, as it is for gemma3"],
    ),
    "pre": ("qwen3", {"tokenizer.ggml.pre": "qwen9"}, ["tokenizer.ggml.pre", "'qwen9' is not a known pre-tokenizer"]),
}


@pytest.mark.parametrize(("kind", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_exact_are_refused(
    kind: str, keys: Mapping[str, Any], words: list[str], tmp_path: Path
) -> None:
    kind, config, changes, own = PLAIN[kind]
    written((kind, config, changes, {**own, **keys}), tmp_path / "m.gguf")
    with pytest.raises(UserError) as error:
        check_source(tmp_path / "m.gguf")
    assert all(word in str(error.value) for word in [str(tmp_path), *words]), error.value


LONGROPE_WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one": (
        {},
        {"rope_factors_long.weight": None},
        "holds rope_factors_short.weight, but not rope_factors_long.weight",
    ),
    "shape": ({}, {"rope_factors_short.weight": np.ones(5, np.float32)}, "has shape (5,) of F32"),
    "type": ({}, {"rope_factors_short.weight": np.ones(6, np.float16)}, "has shape (6,) of F16"),
    "zero": ({}, {"rope_factors_long.weight": np.zeros(6, np.float32)}, "holds factors that are not above 0"),
    "length": ({"rope.scaling.original_context_length": None}, {}, "None is not a number above 1"),
    "magnitude": ({"rope.scaling.attn_factor": None}, {}, "attn_factor: None is not a number above 0"),
    "other": ({"rope.scaling.type": "linear"}, {}, "'linear' is not supported"),
}


@pytest.mark.parametrize(("keys", "factors", "words"), LONGROPE_WRONG.values(), ids=LONGROPE_WRONG)
def test_longrope_that_is_incomplete_is_refused(
    keys: dict[str, Any], factors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    kind, config, changes, own = CASES["phi3_longrope"]
    model = random_model(hf_config(config.removesuffix("Config"), **SIZES | changes))
    tensors = {name: tensor for name, tensor in (FACTORS | factors).items() if tensor is not None}
    write_model(tmp_path / "m.gguf", model, kind, own | keys, tensors)
    with pytest.raises(UserError) as error:
        check_source(tmp_path / "m.gguf")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "tensor", "value", "words"),
    [
        ("qwen3", "blk.1.attn_q_norm.weight", None, "missing: model.layers.1.self_attn.q_norm.weight"),
        ("qwen3", "blk.1.attn_q_norm.weight", np.ones(64, np.float32), "q_norm.weight has shape (64,)"),
        ("gemma2", "blk.0.post_ffw_norm.weight", None, "post_feedforward_layernorm.weight"),
        ("gemma3", "blk.0.ffn_up.weight", np.ones((96, 32), np.float32), "up_proj.weight has shape (96, 32)"),
        ("phi3", "blk.2.attn_qkv.weight", np.ones((64, 64), np.float32), "qkv_proj.weight has shape (64, 64)"),
        ("gemma2", "output.weight", np.ones((264, 64), np.float32), "1 tensors do not exist in the architecture"),
        ("phi3", "rope_freqs.weight", np.ones(8, np.float32), "1 tensors do not exist in the architecture"),
        ("gemma3", "output_norm.weight", np.full(64, NAN, np.float32), "64 of 64 numbers are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(kind: str, tensor: str, value: Any, words: str, tmp_path: Path) -> None:
    written(PLAIN[kind], tmp_path / "whole.gguf")
    file = read_gguf(tmp_path / "whole.gguf")
    weights = {
        name: np.fromfile(stored.path, np.float32, stored.numel, offset=stored.offset).reshape(stored.shape)
        for name, stored in file.tensors.items()
    } | {tensor: value}
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    write_gguf(tmp_path / "m.gguf", _own(file.metadata), kept, architecture=kind)
    with pytest.raises(UserError) as error:
        convert(tmp_path / "m.gguf", tmp_path / "base.nemo")
    assert words in str(error.value)
    assert not (tmp_path / "base.nemo").exists()


def _own(metadata: Mapping[str, object]) -> dict[str, Any]:
    kind = metadata["general.architecture"]
    given = {key: value for key, value in metadata.items() if key.startswith(f"{kind}.")}
    return {f"{kind}.rope.freq_base": None, f"{kind}.rope.dimension_count": None} | given
