# SPDX-License-Identifier: Apache-2.0
"""What the frozen T5 is built of: embeddings, and stacks of Megatron-core's layers."""

from __future__ import annotations

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.T5.t5_spec import decoder_model_with_local_spec, encoder_model_with_local_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_launcher.families.layer_shape import padded_vocab_size
from nemo_launcher.families.t5.attention import (
    BlockAttention,
    ScalableCrossAttention,
)
from nemo_launcher.families.t5.shape import StackShape, T5Shape
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.frozen_layer import use_frozen_parts
from nemo_launcher.megatron.frozen_norm import FrozenNorm
from nemo_launcher.megatron.self_attention import ScalableSelfAttention
from nemo_launcher.megatron.sizes import (
    StackStages,
)


def embedding(shape: T5Shape, stack: StackShape, config: TransformerConfig) -> LanguageModelEmbedding:
    """Return the embeddings of tokens and positions of one stack."""
    return LanguageModelEmbedding(
        config=config,
        vocab_size=embedding_rows(shape, config),
        max_sequence_length=shape.max_position_embeddings,
        position_embedding_type=stack.position_embedding_type,
    )


def embedding_rows(shape: T5Shape, config: TransformerConfig) -> int:
    """Return the number of rows of a token embedding, with those that make it divide over ranks."""
    return padded_vocab_size(shape.vocab_size, config.tensor_model_parallel_size)


class _StageOfStack:
    """A stand-in for the pipeline group of one stack, from which Megatron-core derives layer numbers."""

    def __init__(self, stages: StackStages) -> None:
        self.stages = stages

    def rank(self) -> int:
        return parallel.pipeline_rank() - self.stages.first

    def size(self) -> int:
        return self.stages.count


def stack_of(config: TransformerConfig, layer: ModuleSpec, stages: StackStages) -> TransformerBlock:
    """Return this pipeline stage's layers of a stack, with the final norm on its last stage."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    groups.pp = _StageOfStack(stages)
    layers = [layer] * (config.num_layers // stages.count)
    return TransformerBlock(
        config=config,
        spec=TransformerBlockSubmodules(layers, layer_norm=FrozenNorm),
        post_process=parallel.pipeline_rank() == stages.last,
        pg_collection=groups,
    )


def encoder_layer() -> ModuleSpec:
    """Return the specification of an encoder layer with frozen parts."""
    spec = encoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    use_frozen_parts(spec)
    return spec


def decoder_layer() -> ModuleSpec:
    """Return the specification of a decoder layer with frozen parts."""
    spec = decoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    spec.submodules.cross_attention.module = ScalableCrossAttention
    spec.submodules.cross_attention.submodules.core_attention = BlockAttention
    use_frozen_parts(spec)
    return spec
