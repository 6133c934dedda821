# SPDX-License-Identifier: Apache-2.0
"""GGUF files of each architecture give the numbers of the model that they were made from, or are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_launcher.checkpoint.gguf_architectures import GGUF_ARCHITECTURES
from nemo_launcher.checkpoint.gguf_file import GGUFKeys, read_gguf
from nemo_launcher.checkpoint.sources import check_source
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from tests.engine import logits_of
from tests.gguf_files import write_gguf
from tests.gguf_models import SIZES, random_model, write_model

pytestmark = pytest.mark.unit

Case = tuple[str, str, dict[str, Any], dict[str, Any]]


def heads(size: int) -> dict[str, int]:
    return {"attention.key_length": size, "attention.value_length": size}


def window(size: int) -> dict[str, int]:
    return {"attention.sliding_window": size}


def rope(base: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **more}}


def layered(local: float = 10000.0, **full: Any) -> dict[str, Any]:
    """Return Gemma 3's parameters; full: those of layers without a window."""
    whole = {"rope_type": "default", "rope_theta": 1e6, **full}
    return {
        "rope_parameters": {
            "full_attention": whole,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def small(size: int = 16, **more: Any) -> dict[str, Any]:
    """Return the settings of a Gemma with heads of this size."""
    return {"head_dim": size, "query_pre_attn_scalar": size, "sliding_window": 8, **more}


SHORT, FAR = np.linspace(1, 3, 6, dtype=np.float32), np.linspace(2, 30, 6, dtype=np.float32)
FACTORS = {"rope_factors_short.weight": SHORT, "rope_factors_long.weight": FAR}
MAGNITUDE = math.sqrt(1 + math.log(4) / math.log(64))
LONGROPE = rope(10000.0, partial_rotary_factor=0.75, original_max_position_embeddings=64) | {
    "original_max_position_embeddings": 64
}
LONGROPE["rope_parameters"] |= {"rope_type": "longrope", "short_factor": SHORT.tolist(), "long_factor": FAR.tolist()}
LONG_KEYS = {
    "rope.dimension_count": 12,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": MAGNITUDE,
    **window(0),
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
BASE = {"rope.freq_base": 1e6}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
LAYERS = ["full_attention", "sliding_attention"] * 2

# name -> architecture, its configuration in transformers, changes of SIZES, the file's own keys
PLAIN: dict[str, Case] = {
    "llama": ("llama", "LlamaConfig", {}, {"rope.dimension_count": 16}),
    "qwen2": ("qwen2", "Qwen2Config", {}, {}),
    "qwen3": ("qwen3", "Qwen3Config", {"head_dim": 128}, heads(128)),
    "gemma2": ("gemma2", "Gemma2Config", {"head_dim": 256, "sliding_window": 8}, {**heads(256), **window(8)}),
    "gemma3": (
        "gemma3",
        "Gemma3TextConfig",
        {"head_dim": 256, "sliding_window": 8, "num_hidden_layers": 7},
        {**heads(256), **window(8), **BASE},
    ),
    "phi3": ("phi3", "Phi3Config", {}, window(0)),
}
"""Files of which transformers reads all settings."""
CASES: dict[str, Case] = {
    "llama_biases": ("llama", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}, {"rope.dimension_count": 16}),
    "qwen2_tied": ("qwen2", "Qwen2Config", {"tie_word_embeddings": True, **rope(1e6)}, BASE),
    "qwen2_heads": ("qwen2", "Qwen2Config", {"num_attention_heads": 8, "num_key_value_heads": 1}, {}),
    "qwen3_tied": ("qwen3", "Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True, **rope(1e6)}, heads(8) | BASE),
    "qwen3_linear": (
        "qwen3",
        "Qwen3Config",
        {"head_dim": 16, "num_key_value_heads": 4, **rope(1e6, rope_type="linear", factor=8.0)},
        heads(16) | BASE | LINEAR,
    ),
    "gemma2_caps": ("gemma2", "Gemma2Config", small(**CAPS), {**heads(16), **window(8), **CAPS}),
    "gemma2_no_window": (
        "gemma2",
        "Gemma2Config",
        small(24, num_key_value_heads=4, sliding_window=400),
        {**heads(24), **window(400)},
    ),
    "gemma3_linear": (
        "gemma3",
        "Gemma3TextConfig",
        small(num_hidden_layers=7, **layered(rope_type="linear", factor=8.0)),
        {**heads(16), **window(8), **BASE, **LINEAR},
    ),
    "gemma3_no_window": (
        "gemma3",
        "Gemma3TextConfig",
        small(layer_types=["full_attention"] * 3, **layered(rope_type="linear", factor=8.0)),
        {**heads(16), **BASE, **LINEAR},
    ),
    "gemma3_pattern": (
        "gemma3",
        "Gemma3TextConfig",
        small(
            num_hidden_layers=4,
            layer_types=LAYERS,
            final_logit_softcapping=4.0,
            tie_word_embeddings=False,
            **layered(5000.0),
        ),
        {
            **heads(16),
            **window(8),
            **BASE,
            "rope.freq_base_swa": 5000.0,
            "attention.sliding_window_pattern": [False, True, False, True],
            "final_logit_softcapping": 4.0,
        },
    ),
    "phi3_window": (
        "phi3",
        "Phi3Config",
        {"sliding_window": 8, "tie_word_embeddings": True, **rope(10000.0, partial_rotary_factor=0.75)},
        {**window(8), "rope.dimension_count": 12, "rope.scaling.original_context_length": 256},
    ),
    "phi3_longrope": ("phi3", "Phi3Config", {"num_key_value_heads": 4, **LONGROPE}, LONG_KEYS),
}
"""Files of which transformers reads the weights alone: it takes its own defaults for other settings."""


def written(case: Case, path: Path) -> Any:
    """Write a random model of a case; return it."""
    import transformers

    kind, config, changes, keys = case
    model = random_model(getattr(transformers, config)(**SIZES | changes))
    longrope = "longrope" in str(changes)
    write_model(path, model, kind, keys, FACTORS if longrope else None)
    return model


@pytest.mark.parametrize("name", PLAIN | CASES)
def test_logits_are_those_of_the_model_and_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "m.gguf"
    model = written((PLAIN | CASES)[name], path)
    convert(path, tmp_path / "base.nemo")
    read = {} if name in PLAIN else {"config": model.config}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, attn_implementation="eager", **read)
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        wanted, found = model(ids).logits, theirs(ids).logits
    ours = logits_of(tmp_path / "base.nemo", ids)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)
    if name != "llama_biases":  # transformers leaves them out
        torch.testing.assert_close(ours, found, rtol=0, atol=1e-4)


def test_longrope_is_limited_to_the_original_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(CASES["phi3_longrope"], tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "base.nemo")
    assert "sequences are limited to 64 tokens (instead of 256)" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_models_of_27b_are_scaled_by_the_width_of_a_head(kind: str, layers: int, tmp_path: Path) -> None:
    """These have heads of another size than hidden / heads; a file does not say what scales their scores."""
    for number, scale in ((layers, 1024 // 4), (layers + 1, 128)):
        keys = {"block_count": number, "embedding_length": 1024, "rope.freq_base": 1e6, **heads(128), **window(8)}
        path = write_gguf(tmp_path / f"{number}.gguf", {f"{kind}.{k}": v for k, v in keys.items()}, architecture=kind)
        file = read_gguf(path)
        own = GGUF_ARCHITECTURES[kind].attention
        assert own is not None
        assert own(GGUFKeys(file, kind), 128)["query_pre_attn_scalar"] == scale


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
    import transformers

    kind, config, changes, own = CASES["phi3_longrope"]
    model = random_model(getattr(transformers, config)(**SIZES | changes))
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
