# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's `model_config.yaml` says about a stack of layers, as a Megatron-core configuration.

The keys are those of NeMo 1.20 to 1.23 (examples/nlp/language_modeling/conf/megatron_gpt_config.yaml), which its GPT
and T5 models share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.files.values import Section
from nemo_launcher.megatron.sizes import ONE_RANK, ParallelSizes

Activation = Callable[[torch.Tensor], torch.Tensor]


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    return torch.square(F.relu(x))


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


# name -> (function, is it a gated linear unit)
ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "gelu": (F.gelu, False),
    "relu": (F.relu, False),
    "squared-relu": (_squared_relu, False),
    "silu": (F.silu, False),
    "geglu": (F.gelu, True),
    "fast-geglu": (F.gelu, True),
    "swiglu": (F.silu, True),
    "fast-swiglu": (F.silu, True),
    "reglu": (F.relu, True),
    "fast-reglu": (F.relu, True),
}
NORMALIZATIONS = {
    "layernorm": "LayerNorm",
    "layernorm1p": "LayerNorm",  # its weights are stored minus 1 (checkpoint.norms)
    "low_precision_layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
}


class Shape(Protocol):
    """What is said about a whole model, whatever the family."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


class LayerShape(Protocol):
    """What is said about the layers of one stack, whatever the family. Sizes are those of the whole model."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_query_groups(self) -> int: ...
    @property
    def kv_channels(self) -> int: ...
    @property
    def activation_function(self) -> Activation: ...
    @property
    def gated(self) -> bool: ...
    @property
    def normalization(self) -> str: ...
    @property
    def layernorm_epsilon(self) -> float: ...
    @property
    def bias(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...


def choose(
    config: Section, position_embeddings: Mapping[str, str], source: str
) -> tuple[dict[str, str], list[Problem]]:
    """Return activation, normalization and position_embedding_type, NeMo's defaults filled in, and what is wrong."""
    choices: dict[str, tuple[str, Mapping[str, object]]] = {
        "activation": ("gelu", ACTIVATIONS),
        "normalization": ("layernorm", NORMALIZATIONS),
        "position_embedding_type": ("learned_absolute", position_embeddings),
    }
    chosen = {key: str(config.get(key) or default) for key, (default, _) in choices.items()}
    problems = [
        Problem(f"{source}: {key}", f"{chosen[key]!r} is not supported", did_you_mean(chosen[key], known))
        for key, (_, known) in choices.items()
        if chosen[key] not in known
    ]
    return chosen, problems


def unsupported(config: Section, fixed: Mapping[str, tuple[object, ...]], source: str) -> list[Problem]:
    """Return a problem for each key of `fixed` that holds another value than those it names."""
    return [
        Problem(f"{source}: {key}", f"{config[key]!r} is not supported", f"supported: {expected[0]!r}")
        for key, expected in fixed.items()
        if key in config and config[key] not in expected
    ]


def is_gated(config: Section) -> bool:
    """Return whether a configuration's activation is a gated linear unit; an unknown one is not."""
    return ACTIVATIONS.get(str(config.get("activation")), (None, False))[1]


def activation(name: str, config: Section) -> tuple[Activation, bool]:
    """Return the function of an activation and whether it is a gated linear unit."""
    function, gated = ACTIVATIONS[name]
    # NeMo's fused bias + gelu kernel computes the tanh form; the fusion is on by default in NeMo.
    if function is F.gelu and (config.get("openai_gelu") or config.get("bias_activation_fusion", True)):
        function = _tanh_gelu
    return function, gated


def padded_vocab_size(size: int, tensor_parallel_size: int) -> int:
    """Return the number of embedding rows that divides over tensor-parallel ranks; the added ones stand for nothing."""
    return math.ceil(size / tensor_parallel_size) * tensor_parallel_size


def transformer_config(
    shape: LayerShape,
    *,
    dtype: torch.dtype,
    sizes: ParallelSizes = ONE_RANK,
) -> TransformerConfig:
    """Return the Megatron-core configuration of a frozen model: no dropout, no initialisation, no fused kernels."""
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        layernorm_epsilon=shape.layernorm_epsilon,
        normalization=shape.normalization,
        add_bias_linear=shape.bias,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=shape.gated,
        activation_func=shape.activation_function,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        sequence_parallel=sizes.sequence_parallel,
        batch_p2p_comm=False,
        variable_seq_lengths=sizes.pipeline > 1,  # rows are as long as what is packed into them
        moe_token_dispatcher_type="alltoall",  # there are no experts; the default refuses variable lengths
    )
