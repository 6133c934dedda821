# SPDX-License-Identifier: Apache-2.0
"""Conversion of `model_config.yaml` keys of a layer stack to a Megatron-core configuration.

The keys are those of NeMo 1.20 to 1.23 (examples/nlp/language_modeling/conf/megatron_gpt_config.yaml), common to its
GPT and T5 models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F

from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.files.values import Section
from nemo_launcher.megatron.layer_config import LayerConfig
from nemo_launcher.megatron.sizes import ONE_RANK, LayerSizes, ParallelSizes
from nemo_launcher.megatron.variation import PLAIN, Variation

Activation = Callable[[torch.Tensor], torch.Tensor]


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    return torch.square(F.relu(x))


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


# name -> (function, whether it is a gated linear unit)
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
    "layernorm1p": "LayerNorm",  # stores weights minus 1 (checkpoint.norms)
    "low_precision_layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
}


class Shape(Protocol):
    """The common shape of a complete model in any family."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


class LayerShape(LayerSizes, Protocol):
    """The layers of one stack, in any family: their sizes, and what they compute."""

    @property
    def activation_function(self) -> Activation: ...
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
    """Return activation, normalization and position_embedding_type, with NeMo's defaults, and the problems in them."""
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
    """Return a Problem for each key of `fixed` with a value that is not listed there."""
    return [
        Problem(f"{source}: {key}", f"{config[key]!r} is not supported", f"supported: {expected[0]!r}")
        for key, expected in fixed.items()
        if key in config and config[key] not in expected
    ]


def is_gated(config: Section) -> bool:
    """Return whether a configuration's activation is a gated linear unit; False for an unknown activation."""
    return ACTIVATIONS.get(str(config.get("activation")), (None, False))[1]


def activation(name: str, config: Section) -> tuple[Activation, bool]:
    """Return the activation function, and whether it is a gated linear unit."""
    function, gated = ACTIVATIONS[name]
    # NeMo's fused bias + GELU kernel, its default, computes the tanh approximation.
    if function is F.gelu and (config.get("openai_gelu") or config.get("bias_activation_fusion", True)):
        function = _tanh_gelu
    return function, gated


def padded_vocab_size(size: int, tensor_parallel_size: int) -> int:
    """Return the number of embedding rows, padded to a multiple of the tensor-parallel size."""
    return math.ceil(size / tensor_parallel_size) * tensor_parallel_size


def transformer_config(
    shape: LayerShape,
    *,
    dtype: torch.dtype,
    sizes: ParallelSizes = ONE_RANK,
    variation: Variation = PLAIN,
) -> LayerConfig:
    """Return the Megatron-core configuration of a frozen model, without dropout, initialization or fused kernels."""
    return LayerConfig(
        variation=variation,
        softmax_scale=variation.softmax_scale,
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
        variable_seq_lengths=sizes.pipeline > 1,  # the length of a row depends on its samples
        moe_token_dispatcher_type="alltoall",  # unused, but the default refuses variable lengths
    )
