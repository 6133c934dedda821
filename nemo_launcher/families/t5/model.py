# SPDX-License-Identifier: Apache-2.0
"""The frozen T5: two stacks of Megatron-core's layers over packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.relative_pos_embedding import RelativePositionEmbedding
from megatron.core.models.T5.t5_spec import decoder_model_with_local_spec, encoder_model_with_local_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import scatter_to_tensor_model_parallel_region
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.layer_shape import padded_vocab_size
from nemo_launcher.families.t5.attention import (
    BlockAttention,
    BlockPlan,
    CrossStepPlan,
    EncodedPrompts,
    ScalableCrossAttention,
    StepPlan,
)
from nemo_launcher.families.t5.shape import StackShape, T5Shape, stack_config
from nemo_launcher.megatron import parallel, sequence
from nemo_launcher.megatron.attention import ScalableSelfAttention
from nemo_launcher.megatron.frozen_layer import use_frozen_parts
from nemo_launcher.megatron.frozen_linear import FrozenHead
from nemo_launcher.megatron.frozen_norm import FrozenNorm
from nemo_launcher.megatron.sizes import (
    ONE_RANK,
    ParallelSizes,
    StackStages,
    check_division,
    encoder_and_decoder_stages,
)


@dataclass(frozen=True, slots=True)
class Row:
    """Samples packed into one row."""

    tokens: Tensor
    """[1, s]."""
    lengths: Sequence[int]
    """The number of tokens in each sample."""

    def position_ids(self) -> Tensor:
        """Return the position of each token in its own sample, [1, s]."""
        places = [torch.arange(length, device=self.tokens.device) for length in self.lengths]
        return torch.cat(places)[None]


class FrozenT5(FrozenModel):
    """A T5 without trainable parameters.

    It differs from T5Model in megatron-core 0.16 where NeMo's checkpoints do: encoder and decoder have separate
    position tables and, optionally, separate token embeddings and an untied head; the head's bias is optional. Rows are
    packed (families.t5.attention), positions start at 0 in each sample, and the head runs only on the requested
    positions.
    """

    # None if another pipeline stage holds them
    encoder: TransformerBlock
    decoder: TransformerBlock
    encoder_embedding: LanguageModelEmbedding
    decoder_embedding: LanguageModelEmbedding
    output_layer: FrozenHead | None

    def __init__(self, shape: T5Shape, *, dtype: torch.dtype, sizes: ParallelSizes) -> None:
        super().__init__(config=stack_config(shape.decoder, dtype=dtype, sizes=sizes))
        self.model_type = ModelType.encoder_or_decoder  # required by Megatron-core's schedules
        self.shape = shape
        self.received: Tensor | None = None
        self.encoder_stages, self.decoder_stages = encoder_and_decoder_stages(sizes)
        self.encoder = self.decoder = self.encoder_embedding = self.decoder_embedding = None
        self.output_layer = None
        if parallel.pipeline_rank() in self.encoder_stages:
            self._build_encoder(dtype, replace(sizes, pipeline=self.encoder_stages.count))
        if parallel.pipeline_rank() in self.decoder_stages:
            self._build_decoder(dtype, replace(sizes, pipeline=self.decoder_stages.count))

    def _build_encoder(self, dtype: torch.dtype, sizes: ParallelSizes) -> None:
        shape = self.shape.encoder
        check_division(shape, tensor=sizes.tensor, pipeline=sizes.pipeline, stack="encoder")
        config = stack_config(shape, dtype=dtype, sizes=sizes)
        self.encoder_relative_positions = _relative_positions(shape, bidirectional=True, dtype=dtype)
        self.encoder = _stack(config, _encoder_layer(), self.encoder_stages)
        if parallel.pipeline_rank() == self.encoder_stages.first:
            self.encoder_embedding = _embedding(self.shape, shape, config)

    def _build_decoder(self, dtype: torch.dtype, sizes: ParallelSizes) -> None:
        shape, stage = self.shape.decoder, parallel.pipeline_rank()
        check_division(shape, tensor=sizes.tensor, pipeline=sizes.pipeline, stack="decoder")
        config = stack_config(shape, dtype=dtype, sizes=sizes)
        self.decoder_relative_positions = _relative_positions(shape, bidirectional=False, dtype=dtype)
        self.cross_relative_positions = (
            _relative_positions(shape, bidirectional=True, dtype=dtype) if self.shape.cross_attention_bias else None
        )
        self.decoder = _stack(config, _decoder_layer(), self.decoder_stages)
        if stage == self.decoder_stages.first:
            self.decoder_embedding = _embedding(self.shape, shape, config)
            if self.shape.share_token_embeddings and self.encoder_embedding is not None:
                self.decoder_embedding.word_embeddings = self.encoder_embedding.word_embeddings
        if stage == self.decoder_stages.last:
            self.output_layer = FrozenHead(
                shape.hidden_size,
                _embedding_rows(self.shape, config),
                config=config,
                bias=self.shape.head_bias,
                is_tied=self.shape.head_is_tied and self.decoder_embedding is not None,
            )

    @property
    def names_in_checkpoint(self) -> dict[str, str]:
        """Parameters with another name in checkpoints: those shared with another pipeline stage."""
        encoder, decoder = (f"{stack}_embedding.word_embeddings.weight" for stack in ("encoder", "decoder"))
        names = {decoder: encoder} if self.shape.share_token_embeddings else {}
        return names | ({"output_layer.weight": names.get(decoder, decoder)} if self.shape.head_is_tied else {})

    def set_input_tensor(self, tensors: Sequence[Tensor | None]) -> None:
        """Set the output of the previous pipeline stage; None on the first stage."""
        (self.received,) = tensors

    def forward(self, encoder_row: Row, decoder_row: Row) -> Tensor:
        """Return the logits of every decoder token, [decoder tokens, vocabulary]; both rows hold the same samples.

        A pipeline stage that is not the last returns hidden states, [s, 1, hidden]: the encoder's, followed by the
        decoder's from the decoder's first stage on.
        """
        received = self.received
        if self.encoder is not None:
            encoded = self.encode(encoder_row, received)
            hidden = None
        else:
            assert received is not None  # set by set_input_tensor
            length = encoder_row.tokens.numel() // (parallel.tensor_size() if self.config.sequence_parallel else 1)
            encoded, hidden = received[:length], received[length:]
        if self.decoder is None:
            return encoded
        hidden = self._decode(encoder_row, decoder_row, encoded, hidden)
        return torch.cat((encoded, hidden)) if self.output_layer is None else self.logits_of(hidden)[:, 0]

    def _decode(self, encoder_row: Row, decoder_row: Row, encoded: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the decoder's output, [s, 1, hidden]; hidden: the output of its previous pipeline stage."""
        encoder_lengths, decoder_lengths = encoder_row.lengths, decoder_row.lengths
        bias = position_bias(self.decoder_relative_positions, max(decoder_lengths), causal=True)
        cross_bias = position_bias(self.cross_relative_positions, max(decoder_lengths), max(encoder_lengths))
        if self.decoder_embedding is not None:
            hidden = self.decoder_embedding(decoder_row.tokens, decoder_row.position_ids())
        decoded: Tensor = self.decoder(
            hidden_states=hidden,
            attention_mask=BlockPlan(decoder_lengths, decoder_lengths, causal=True, bias=bias),
            context=encoded,
            context_mask=BlockPlan(decoder_lengths, encoder_lengths, bias=cross_bias),
        )
        return decoded

    def encode(self, row: Row, hidden: Tensor | None = None) -> Tensor:
        """Return the encoder's output, [s, 1, hidden]; hidden: the output of its previous pipeline stage."""
        bias = position_bias(self.encoder_relative_positions, max(row.lengths))
        if self.encoder_embedding is not None:
            hidden = self.encoder_embedding(row.tokens, row.position_ids())
        plan = BlockPlan(row.lengths, row.lengths, bias=bias)
        encoded: Tensor = self.encoder(hidden_states=hidden, attention_mask=plan)
        return encoded

    def step(
        self,
        tokens: Tensor,
        places: Tensor,
        prompts: EncodedPrompts,
        plan: StepPlan,
        cross_plan: CrossStepPlan,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Run one new decoder token per sample, [samples]; return the next token's logits, [samples, vocabulary].

        places: positions of the new tokens among each sample's decoder tokens, [samples]. hidden: the output of the
        decoder's previous pipeline stage. A stage that is not the last returns its hidden states, [1, samples, hidden].
        """
        if self.decoder_embedding is not None:
            hidden = self.decoder_embedding(tokens[:, None], places[:, None])
        decoded: Tensor = self.decoder(
            hidden_states=hidden, attention_mask=plan, context=prompts, context_mask=cross_plan
        )
        return decoded if self.output_layer is None else self.logits_of(decoded)[0]

    def step_biases(self, slots: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases of self- and cross-attention for up to `slots` decoder and `width` encoder tokens."""
        return (
            position_bias(self.decoder_relative_positions, slots, causal=True),
            position_bias(self.cross_relative_positions, slots, width),
        )

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Return the logits, [s, b, vocabulary], of the decoder's output, [s, b, hidden]."""
        if self.config.sequence_parallel:
            hidden = sequence.gather_sequence(hidden)
        tied = self.shape.head_is_tied and self.decoder_embedding is not None
        weight = self.decoder_embedding.word_embeddings.weight if tied else None
        assert self.output_layer is not None  # this is the last stage
        logits: Tensor = self.output_layer(hidden, weight=weight)[0]
        return logits[..., : self.shape.vocab_size]  # without the padding rows of the embedding


def build_t5(
    shape: T5Shape,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: ParallelSizes = ONE_RANK,
) -> FrozenT5:
    """Return this rank's part of an uninitialized, frozen model in eval mode; its weights come from a checkpoint.

    dtype: of weights and activations. Megatron's process groups must exist (megatron.parallel.initialize). Raises
    UserError if the ranks cannot split the model evenly.
    """
    model = FrozenT5(shape, dtype=dtype, sizes=sizes)
    model.eval().requires_grad_(False)
    return model


def _embedding(shape: T5Shape, stack: StackShape, config: TransformerConfig) -> LanguageModelEmbedding:
    return LanguageModelEmbedding(
        config=config,
        vocab_size=_embedding_rows(shape, config),
        max_sequence_length=shape.max_position_embeddings,
        position_embedding_type=stack.position_embedding_type,
    )


def _embedding_rows(shape: T5Shape, config: TransformerConfig) -> int:
    return padded_vocab_size(shape.vocab_size, config.tensor_model_parallel_size)


def _relative_positions(
    stack: StackShape, *, bidirectional: bool, dtype: torch.dtype
) -> RelativePositionEmbedding | None:
    if stack.position_embedding_type != "relative":
        return None
    positions = RelativePositionEmbedding(
        bidirectional=bidirectional,
        init_method=nn.init.zeros_,
        num_attention_heads=stack.num_attention_heads,
        relative_attention_num_buckets=stack.relative_attention_num_buckets,
        relative_attention_max_distance=stack.relative_attention_max_distance,
    )
    return positions.to(dtype)


def position_bias(
    positions: RelativePositionEmbedding | None, queries: int, keys: int | None = None, *, causal: bool = False
) -> Tensor | None:
    """Return the bias of scores, [1, heads of this rank, queries, keys]; None without relative positions."""
    if positions is None:
        return None
    bias: Tensor = positions(queries, queries if keys is None else keys)  # [1, heads, queries, keys]
    bias = scatter_to_tensor_model_parallel_region(bias.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    if causal:
        above = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
        bias = bias.masked_fill(above, float("-inf"))
    return bias


class _StageOfStack:
    """A stand-in for the pipeline group of one stack, from which Megatron-core derives layer numbers."""

    def __init__(self, stages: StackStages) -> None:
        self.stages = stages

    def rank(self) -> int:
        return parallel.pipeline_rank() - self.stages.first

    def size(self) -> int:
        return self.stages.count


def _stack(config: TransformerConfig, layer: ModuleSpec, stages: StackStages) -> TransformerBlock:
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


def _encoder_layer() -> ModuleSpec:
    spec = encoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    use_frozen_parts(spec)
    return spec


def _decoder_layer() -> ModuleSpec:
    spec = decoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    spec.submodules.cross_attention.module = ScalableCrossAttention
    spec.submodules.cross_attention.submodules.core_attention = BlockAttention
    use_frozen_parts(spec)
    return spec
