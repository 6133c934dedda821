# SPDX-License-Identifier: Apache-2.0
"""Our layer with adapters equals the adapter mixins of NeMo 1.23 on a Megatron-core layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.families.gpt.model import build_gpt
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.sizes import ONE_RANK
from tests import oracle

pytestmark = pytest.mark.unit

SHAPE = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64, "encoder_seq_length": 16}
PLAIN = {"activation": "gelu", "bias_activation_fusion": False}
BOTTLENECK = {"adapter_tuning": {"type": "parallel_adapter", "adapter_dim": 8, "norm_position": "pre"}}
GATED = {"activation": "fast-swiglu", "num_query_groups": 2}


def adapted_layer(name: str, case: dict[str, Any]) -> tuple[torch.nn.Module, AdapterSet]:
    """Return the single layer of a model with the case's weights and adapters, and the adapters."""
    config = GATED if name.endswith("_swiglu_gqa") else PLAIN
    adapter_config: dict[str, Any] = {} if name == "ia3" else BOTTLENECK
    shape = GPTShape.from_config(SHAPE | config, vocab_size=8, source=name)
    parallel.initialize(ONE_RANK)
    model = build_gpt(shape)
    layer = model.decoder.layers[0]
    adapters = AdapterSet(model, shape, adapter_config)
    state = case["base_state_dict"] | case["adapter"]
    assert state.keys() == dict(layer.named_parameters()).keys()
    layer.load_state_dict(state)
    return layer, adapters


@pytest.mark.parametrize("name", oracle.LAYER_CASES)
def test_output_and_gradients_are_nemos(name: str) -> None:
    case = oracle.load("mcore_layer")[name]
    layer, adapters = adapted_layer(name, case)
    length = case["x"].size(0)
    y, _ = layer(hidden_states=case["x"], attention_mask=AttentionPlan([Group(0, (length,))]))
    torch.testing.assert_close(y, case["y"], rtol=0, atol=5e-6)
    (y * case["w"]).sum().backward()
    grads = {key: parameter.grad for key, parameter in layer.named_parameters() if parameter.requires_grad}
    assert len(grads) == len(adapters.parameters())
    torch.testing.assert_close(grads, case["grads"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", oracle.LAYER_CASES)
def test_the_adapters_matter(name: str) -> None:
    case = oracle.load("mcore_layer")[name]
    layer, adapters = adapted_layer(name, case)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.fill_(1.0 if name == "ia3" else 0.0)
        y, _ = layer(hidden_states=case["x"], attention_mask=AttentionPlan([Group(0, (case["x"].size(0),))]))
    assert (y - case["y"]).abs().max() > 1e-2
