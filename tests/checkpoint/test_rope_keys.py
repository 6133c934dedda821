# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in the keys of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_launcher.checkpoint.architectures.rope_keys import older_keys, rope_parameters
from nemo_launcher.errors import UserError
from nemo_launcher.families.hf_classes import model_class, read_configuration
from nemo_launcher.requirements import is_transformers_5

pytestmark = pytest.mark.unit

LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0], "long_factor": [2.0]}
SLIDING = {"rope_type": "default", "rope_theta": 100.0}
LLAMA = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


@pytest.mark.parametrize(
    ("kind", "rope", "older"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 500.0}, {"rope_theta": 500.0}),
        (
            "llama",
            LINEAR,
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}},
        ),
        ("olmo2", LINEAR, {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            {"rotary_emb_base": 500.0, "rotary_pct": 0.5},
        ),
        (
            "phi3",
            LONG | {"original_max_position_embeddings": 64},
            {
                "rope_theta": 500.0,
                "original_max_position_embeddings": 64,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
        ),
        (
            "gemma3_text",
            {"full_attention": LINEAR, "sliding_attention": SLIDING},
            {
                "rope_local_base_freq": 100.0,
                "rope_theta": 500.0,
                "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0},
            },
        ),
    ],
)
def test_both_forms_say_the_same(kind: str, rope: dict[str, Any], older: dict[str, Any]) -> None:
    assert older_keys(kind, {"rope_parameters": rope}) == older
    # as the configuration of transformers 4 completes them
    read = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    assert rope_parameters(kind, {read.get(key, key): value for key, value in older.items()}) == rope


@pytest.mark.parametrize("rope", [{"rope_parameters": LINEAR}, older_keys("llama", {"rope_parameters": LINEAR})])
def test_each_form_is_read(rope: dict[str, Any]) -> None:
    """With either version."""
    config = read_configuration("LlamaForCausalLM", LLAMA | rope, "config.json").to_dict()
    assert {key: config["rope_parameters"].get(key) for key in LINEAR} == LINEAR


def test_a_class_that_is_absent_is_told_with_the_version() -> None:
    with pytest.raises(UserError, match=r"^base.nemo: transformers \d[\d.]+ has no NoSuchModel\n.*transformers 5"):
        model_class("NoSuchModel", "base.nemo")


@pytest.mark.skipif(is_transformers_5(), reason="transformers 5 computes them")
def test_positions_that_transformers_4_does_not_compute_are_refused() -> None:
    rope = {"full_attention": LINEAR, "sliding_attention": SLIDING}
    with pytest.raises(UserError, match=r"config.json: rope_parameters: transformers 4.* of Olmo3ForCausalLM"):
        read_configuration("Olmo3ForCausalLM", LLAMA | {"rope_parameters": rope}, "config.json")
