# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face models: equal logits, and no repeated work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.engine import logits_of, save_llama

pytestmark = pytest.mark.unit

LONGROPE = {
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped_query_tied": {},
    "untied": {"tie_word_embeddings": False},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 24},
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "rms_norm_eps": {"rms_norm_eps": 1e-2},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_converted_model_gives_transformers_logits(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_llama(tmp_path / "hf", initializer_range=0.1, **changes)
    assert convert(folder, tmp_path / "base.nemo")
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(3, theirs.config.vocab_size, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(ids).logits
    assert wanted.std() > 0.2  # comparing values near zero would prove nothing
    torch.testing.assert_close(logits_of(tmp_path / "base.nemo", ids), wanted, rtol=0, atol=1e-5)


def test_tokenizer_travels_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_llama(tmp_path / "hf")
    convert(folder, tmp_path / "base.nemo")
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_base(tmp_path / "base.nemo").tokenizer
    text = "question: Where does Żaneta live?\n answer: near the river"
    assert ours.text_to_ids(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.ids_to_text(ours.text_to_ids(text)) == text
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 0, len(theirs))


def test_same_source_is_converted_once(tmp_path: Path) -> None:
    folder, target = save_llama(tmp_path / "hf"), tmp_path / "base.nemo"
    assert convert(folder, target)
    os.utime(target, ns=(0, 0))
    assert not convert(folder, target)
    assert target.stat().st_mtime_ns == 0


def test_changed_source_or_other_precision_converts_again(tmp_path: Path) -> None:
    target = tmp_path / "base.nemo"
    convert(save_llama(tmp_path / "hf"), target)
    first = target.read_bytes()
    assert convert(save_llama(tmp_path / "hf", seed=1), target)
    second = target.read_bytes()
    assert second != first
    assert convert(tmp_path / "hf", target, "bf16")
    assert read_config(target)["precision"] == "bf16"
    assert not convert(tmp_path / "hf", target, "bf16")
    assert convert(tmp_path / "hf", target)
    assert target.read_bytes() == second


def test_changed_weights_in_the_same_folder_convert_again(tmp_path: Path) -> None:
    target = tmp_path / "base.nemo"
    assert convert(save_llama(tmp_path / "hf"), target)
    assert convert(save_llama(tmp_path / "hf", seed=1), target)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["model.hf_model_path", "no such file or folder"]),
        (lambda path: path.mkdir(), ["model.hf_model_path", "holds no config.json"]),
        (lambda path: path.write_bytes(b"x"), ["model.hf_model_path", "is not a .gguf file"]),
    ],
    ids=["absent", "empty_folder", "other_file"],
)
def test_wrong_source_is_named(make: Any, words: list[str], tmp_path: Path) -> None:
    make(tmp_path / "source")
    with pytest.raises(UserError) as error:
        convert(tmp_path / "source", tmp_path / "base.nemo")
    assert all(word in str(error.value) for word in [str(tmp_path / "source"), *words])
    assert not (tmp_path / "base.nemo").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | LONGROPE}, "of type 'longrope'"),
    ],
    ids=["hidden_act", "rope_type"],
)
def test_what_cannot_be_carried_over_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not supported") as error:
        convert(save_llama(tmp_path / "hf", **changes), tmp_path / "base.nemo")
    assert word in str(error.value)
    assert not (tmp_path / "base.nemo").exists()


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import MptConfig, MptForCausalLM

    MptForCausalLM(MptConfig(vocab_size=8, d_model=4, n_layers=1, n_heads=1)).save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="architecture MptForCausalLM is not supported") as error:
        convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert "LlamaForCausalLM" in str(error.value)
