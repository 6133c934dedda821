# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of transformers that a conversion's check depends on."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


@leans_on("nemo_launcher/conversion/one_layer.py", "_attn_implementation")
def test_attention_is_chosen_by_the_configuration() -> None:
    """`eager` is the plain formula, whichever kernels are installed."""
    config = LlamaConfig(**SIZES)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    assert model.config._attn_implementation == "eager"
    assert model(torch.arange(4)[None], output_attentions=True).attentions[0].shape == (1, 2, 4, 4)


def test_rotary_frequencies_are_made_by_a_module_of_the_configuration() -> None:
    """A model created on the meta device gets its buffers from modules that are created again."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    (rotary,) = (module for module in model.modules() if any(b.is_meta for b in module.buffers(recurse=False)))
    made = type(rotary)(config=model.config)
    assert not any(buffer.is_meta for buffer in made.buffers())
