# SPDX-License-Identifier: Apache-2.0
"""Converted Hugging Face models of each decoder family give transformers' logits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from tests.engine import logits_of, save_tokenizer
from tests.versions import hf_config

pytestmark = pytest.mark.unit

LLAMA_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT2_SHAPE = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA_SHAPE | {"tie_word_embeddings": False}),
    "llama_head_dim": ("Llama", LLAMA_SHAPE | {"head_dim": 16, "tie_word_embeddings": True}),
    "llama3": ("Llama", LLAMA_SHAPE | {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}),
    "llama3_of_32": (
        "Llama",
        LLAMA_SHAPE | {"rope_parameters": LLAMA3_ROPE | {"factor": 32.0, "high_freq_factor": 2.0}},
    ),
    "llama_linear_rope": (
        "Llama",
        LLAMA_SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "mistral": ("Mistral", LLAMA_SHAPE | {"sliding_window": None}),
    "mistral_window": ("Mistral", LLAMA_SHAPE | {"sliding_window": 64}),
    "qwen2": ("Qwen2", LLAMA_SHAPE),
    "qwen2_tied": ("Qwen2", LLAMA_SHAPE | {"tie_word_embeddings": True}),
    "gpt2": ("GPT2", GPT2_SHAPE),
    "gpt2_inner": ("GPT2", GPT2_SHAPE | {"n_inner": 80}),
}


def save(folder: Path, prefix: str, options: dict[str, Any]) -> Any:
    """Save a random model of a family with its tokenizer; no norm weight is one and no bias is zero."""
    tokens = save_tokenizer(folder)
    config = hf_config(prefix, **options, vocab_size=tokens + 3, bos_token_id=1, eos_token_id=2)
    head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, prefix + head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if "weight" in name else parameter.normal_(std=0.5)
            else:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return model


def logits_of_both(name: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the converted model and of transformers."""
    theirs = save(folder / "hf", *FAMILIES[name])
    convert(folder / "hf", folder / "base.nemo")
    ids = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(ids).logits
    return logits_of(folder / "base.nemo", ids)[..., : wanted.size(-1)], wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    torch.testing.assert_close(*logits_of_both(name, tmp_path), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("prefix", "window"), [("Mistral", [63, 0]), ("Qwen2", None), ("Llama", None)])
def test_only_the_windows_that_transformers_knows_count(prefix: str, window: object, tmp_path: Path) -> None:
    """Transformers ignores use_sliding_window for Mistral, and any window for Llama."""
    save(tmp_path / "hf", prefix, LLAMA_SHAPE)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config |= {"sliding_window": 64, "use_sliding_window": False}
    config.pop("layer_types", None)
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert read_config(tmp_path / "base.nemo").get("window_size") == window


def test_settings_that_no_base_can_have_name_the_base_to_be(tmp_path: Path) -> None:
    rope = LLAMA3_ROPE | {"high_freq_factor": 1.0}
    save(tmp_path / "hf", "Llama", LLAMA_SHAPE | {"rope_parameters": rope})
    with pytest.raises(UserError) as error:
        convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert f"{tmp_path}/base.nemo: low_freq_factor: 1" in str(error.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "hf"]


def test_a_sliding_window_does_not_limit_the_sequence(tmp_path: Path) -> None:
    save(tmp_path / "hf", *FAMILIES["mistral_window"])
    convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert read_config(tmp_path / "base.nemo")["encoder_seq_length"] == 128


def test_each_scaling_of_rotary_positions_matters() -> None:
    """A factor without effect at these lengths would prove nothing."""
    ids, logits = torch.arange(3, 43)[None], []
    for name in ("llama", "llama3", "llama3_of_32", "llama_linear_rope"):
        rope = FAMILIES[name][1].get("rope_parameters", {"rope_theta": 500.0, "rope_type": "default"})
        config = hf_config("Llama", **LLAMA_SHAPE, rope_parameters=rope, vocab_size=60, initializer_range=0.3)
        torch.manual_seed(0)
        with torch.no_grad():
            logits.append(transformers.LlamaForCausalLM(config).eval()(ids).logits)
    assert all((a - b).abs().max() > 1e-2 for a, b in itertools.combinations(logits, 2))


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scaling of attention scores"),
    ],
)
def test_what_is_not_carried_over_is_refused(name: str, change: dict[str, Any], word: str, tmp_path: Path) -> None:
    prefix, options = FAMILIES[name]
    save(tmp_path / "hf", prefix, options | change)
    with pytest.raises(UserError, match=word):
        convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert not (tmp_path / "base.nemo").exists()


def test_bf16_stays_bf16(tmp_path: Path) -> None:
    save(tmp_path / "hf", *FAMILIES["qwen2"]).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert read_config(tmp_path / "base.nemo")["precision"] == "bf16"
