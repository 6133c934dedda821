# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of megatron-core that the frozen models depend on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, layers, mappings
from megatron.core.tensor_parallel import utils as tensor_utils
from megatron.core.transformer.attention import CrossAttention, SelfAttention
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.cpu_megatron import MODULES
from nemo_launcher.megatron.frozen_linear import FrozenHead
from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


def parameters_of(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@leans_on("nemo_launcher/megatron/frozen_linear.py", "_forward_impl")
@pytest.mark.parametrize("layer", [ColumnParallelLinear, RowParallelLinear])
def test_linear_layers_multiply_in_one_method(layer: type) -> None:
    """The frozen layers replace it, and leave communication between ranks to megatron-core."""
    assert parameters_of(layer._forward_impl)[:3] == ["self", "input", "weight"]
    body = inspect.getsource(layer.forward)
    assert "self._forward_impl(" in body or "_forward_impl = self._forward_impl" in body
    for name in (
        "input=",
        "weight=",
        "bias=",
        "gradient_accumulation_fusion=",
        "allreduce_dgrad=",
        "sequence_parallel=",
    ):
        assert name in body


@leans_on("nemo_launcher/megatron/single_group.py", "parallel_state.create_group =")
def test_process_groups_are_made_by_one_function() -> None:
    """For one process all twenty groups are the world group; separate groups would each have Gloo threads."""
    assert "ranks" in parameters_of(parallel_state.create_group)
    body = inspect.getsource(parallel_state.initialize_model_parallel)
    assert body.count("create_group(") > 10
    assert "torch.distributed.new_group(" not in body


def test_what_exchanges_tensors_reaches_cuda_through_its_own_torch() -> None:
    """megatron.cpu_megatron replaces that reference for a model that is split over CPUs."""
    assert set(MODULES) == {layers, mappings, tensor_utils, p2p_communication, schedules}
    for module in MODULES:
        text = inspect.getsource(module)
        assert "\nimport torch\n" in text
        assert 'device="cuda"' in text or "torch.cuda.current_device()" in text
        assert "from torch.cuda" not in text


def test_the_head_is_set_up_last() -> None:
    """FrozenGPT replaces GPTModel's head in the last method that the constructor calls."""
    body = inspect.getsource(GPTModel.__init__)
    assert body.index("self.output_layer = ") < body.index("self.setup_embeddings_and_output_layer()")


def test_a_head_is_built_with_what_megatron_gives_its_own(tiny_base: Path) -> None:
    head = load_base(tiny_base).model.output_layer
    assert type(head) is FrozenHead
    text = inspect.getsource(GPTModel.__init__)
    made = text[text.index("self.output_layer = ") :].partition("\n\n")[0]
    assert "gather_output=not self.parallel_output" in made
    assert "bias=False" in made
    assert head.gather_output
    assert head.bias is None


def test_a_layer_adds_its_residual_by_a_part_of_its_specification() -> None:
    """The last layer continues with selected rows, and takes the same rows of the residual (megatron.last_layer)."""
    assert "self_attn_bda" in TransformerLayerSubmodules.__dataclass_fields__
    body = inspect.getsource(TransformerLayer._forward_attention)
    assert "self.self_attn_bda(self.training, self.config.bias_dropout_fusion)(" in body
    assert "attention_output_with_bias, residual, self.hidden_dropout" in " ".join(body.split())


def test_rates_of_dropout_are_attributes_of_layers_and_of_the_embedding(tiny_base: Path) -> None:
    """nemo_compat sets those of the base, which is built without dropout (training.base_dropout)."""
    model = load_base(tiny_base).model
    assert model.decoder.layers[0].hidden_dropout == 0.0
    assert isinstance(model.embedding, LanguageModelEmbedding)
    assert isinstance(model.embedding.embedding_dropout, torch.nn.Dropout)


@pytest.mark.parametrize("attention", [SelfAttention, CrossAttention])
def test_attention_splits_its_projection_in_one_method(attention: type) -> None:
    """Keys and values are scaled in its result (megatron.self_attention)."""
    assert parameters_of(attention.get_query_key_value_tensors)[:3] == ["self", "hidden_states", "key_value_states"]


def test_self_attention_returns_its_projection_unsplit() -> None:
    """Norms of queries and keys act after the scaling of keys (megatron.self_attention)."""
    assert "split_qkv" in parameters_of(SelfAttention.get_query_key_value_tensors)


def test_core_attention_takes_its_mask_by_name_or_fourth() -> None:
    """An AttentionPlan is passed as the mask."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    assert parameters_of(DotProductAttention.forward)[:5] == ["self", "query", "key", "value", "attention_mask"]
    assert {"config", "layer_number", "softmax_scale"} <= set(parameters_of(DotProductAttention.__init__))
