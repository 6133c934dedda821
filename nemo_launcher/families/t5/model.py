# SPDX-License-Identifier: Apache-2.0
"""The frozen T5: two stacks of Megatron-core's layers over packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.t5.attention import (
    BlockPlan,
    CrossStepPlan,
    EncodedPrompts,
    StepPlan,
)
from nemo_launcher.families.t5.layers import (
    decoder_layer,
    embedding,
    embedding_rows,
    encoder_layer,
    stack_of,
)
from nemo_launcher.families.t5.positions import PositionBias, add_positions, position_bias, relative_positions
from nemo_launcher.families.t5.shape import T5Shape, stack_config
from nemo_launcher.megatron import parallel, sequence
from nemo_launcher.megatron.frozen_linear import FrozenHead
from nemo_launcher.megatron.partial_stack import LayerInput, run_below, run_from
from nemo_launcher.megatron.sizes import (
    ONE_RANK,
    ParallelSizes,
    check_division,
    encoder_and_decoder_stages,
)
from nemo_launcher.megatron.transfer import on_device


@dataclass(frozen=True, slots=True)
class Row:
    """Samples packed into one row."""

    tokens: Tensor
    """[1, s]."""
    lengths: Sequence[int]
    """The number of tokens in each sample."""
    prompts: Sequence[int] | None = None
    """The encoder's sample that each of the decoder's belongs to; None for one each, in the same order."""

    def to(self, device: torch.device) -> Row:
        """Return the row on `device`."""
        return replace(self, tokens=on_device(self.tokens, device))

    def position_ids(self) -> Tensor:
        """Return the position of each token in its own sample, [1, s]."""
        places = torch.cat([torch.arange(length) for length in self.lengths])
        return on_device(places, self.tokens.device)[None]


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
        self.shape, self.num_logits = shape, shape.vocab_size
        self.received_hidden: Tensor | None = None
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
        self.encoder = stack_of(config, encoder_layer(), self.encoder_stages)
        self.encoder_relative_positions = add_positions(self.encoder, shape, bidirectional=True, dtype=dtype)
        if parallel.pipeline_rank() == self.encoder_stages.first:
            self.encoder_embedding = embedding(self.shape, shape, config)

    def _build_decoder(self, dtype: torch.dtype, sizes: ParallelSizes) -> None:
        shape, stage = self.shape.decoder, parallel.pipeline_rank()
        check_division(shape, tensor=sizes.tensor, pipeline=sizes.pipeline, stack="decoder")
        config = stack_config(shape, dtype=dtype, sizes=sizes)
        self.decoder = stack_of(config, decoder_layer(), self.decoder_stages)
        self.decoder_relative_positions = add_positions(self.decoder, shape, bidirectional=False, dtype=dtype)
        self.cross_relative_positions = (
            relative_positions(shape, bidirectional=True).to(dtype) if self.shape.cross_attention_bias else None
        )
        if stage == self.decoder_stages.first:
            self.decoder_embedding = embedding(self.shape, shape, config)
            if self.shape.share_token_embeddings and self.encoder_embedding is not None:
                self.decoder_embedding.word_embeddings = self.encoder_embedding.word_embeddings
        if stage == self.decoder_stages.last:
            self.output_layer = FrozenHead(
                shape.hidden_size,
                embedding_rows(self.shape, config),
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
        (hidden,) = tensors
        self.received_hidden = None if hidden is None else self.received(hidden)

    def forward(self, encoder_row: Row, decoder_row: Row, start: LayerInput | None = None) -> Tensor:
        """Return what the head reads for every decoder token, [tokens, hidden]; both rows hold the same samples.

        start: what enters an encoder layer (hidden_before), if the layers below need not run.
        A pipeline stage that is not the last returns hidden states, [s, 1, hidden]: the encoder's, followed by the
        decoder's from the decoder's first stage on.
        """
        received = self.received_hidden
        if start is not None:
            encoded, hidden = run_from(self.encoder, start, attention_mask=self._encoder_plan(encoder_row)), None
        elif self.encoder is not None:
            encoded = self.encode(encoder_row, received)
            hidden = None
        else:
            assert received is not None  # set by set_input_tensor
            length = encoder_row.tokens.numel() // (parallel.tensor_size() if self.config.sequence_parallel else 1)
            encoded, hidden = received[:length], received[length:]
        if self.decoder is None:
            return encoded
        hidden = self._decode(encoder_row, decoder_row, encoded, hidden)
        if self.output_layer is None:
            return torch.cat((encoded, hidden))
        return (sequence.gather_sequence(hidden) if self.config.sequence_parallel else hidden)[:, 0]

    def _decode(self, encoder_row: Row, decoder_row: Row, encoded: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the decoder's output, [s, 1, hidden]; hidden: the output of its previous pipeline stage."""
        encoder_lengths, decoder_lengths = encoder_row.lengths, decoder_row.lengths
        bias, cross_bias = self.decoder_bias(max(decoder_lengths)), self._cross_bias(decoder_lengths, encoder_lengths)
        if self.decoder_embedding is not None:
            hidden = self.decoder_embedding(decoder_row.tokens, decoder_row.position_ids())
        decoded: Tensor = self.decoder(
            hidden_states=hidden,
            attention_mask=BlockPlan(decoder_lengths, decoder_lengths, causal=True, bias=bias),
            context=encoded,
            context_mask=BlockPlan(decoder_lengths, encoder_lengths, bias=cross_bias, key_blocks=decoder_row.prompts),
        )
        return decoded

    def encode(self, row: Row, hidden: Tensor | None = None) -> Tensor:
        """Return the encoder's output, [s, 1, hidden]; hidden: the output of its previous pipeline stage."""
        if self.encoder_embedding is not None:
            hidden = self.encoder_embedding(row.tokens, row.position_ids())
        encoded: Tensor = self.encoder(hidden_states=hidden, attention_mask=self._encoder_plan(row))
        return encoded

    def hidden_before(self, layer: int, row: Row) -> Tensor:
        """Return the hidden states that enter an encoder layer (from 0), [s, 1, hidden], of a model in one stage."""
        embedded = self.encoder_embedding(row.tokens, row.position_ids())
        return run_below(self.encoder, embedded, layer, attention_mask=self._encoder_plan(row))

    def _encoder_plan(self, row: Row) -> BlockPlan:
        return BlockPlan(row.lengths, row.lengths, bias=self.encoder_bias(max(row.lengths)))

    def encoder_bias(self, length: int) -> PositionBias | None:
        """Return the biases of the encoder's scores for up to `length` tokens; None without relative positions."""
        return position_bias(self.encoder, self.encoder_relative_positions, length)

    def decoder_bias(self, length: int) -> PositionBias | None:
        """Return the biases of the decoder's scores for up to `length` tokens, which are causal."""
        return position_bias(self.decoder, self.decoder_relative_positions, length, causal=True)

    def _cross_bias(self, decoder_lengths: Sequence[int], encoder_lengths: Sequence[int]) -> PositionBias | None:
        table = self.cross_relative_positions
        return None if table is None else PositionBias(table, max(decoder_lengths), max(encoder_lengths))

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

    def step_biases(self, slots: int, width: int) -> tuple[PositionBias | None, PositionBias | None]:
        """Return the biases of self- and cross-attention for up to `slots` decoder and `width` encoder tokens."""
        bias = self.decoder_bias(slots)
        return None if bias is None else bias.keep(), self._cross_bias([slots], [width])

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Return the logits, [..., vocabulary], of the decoder's output, [..., hidden]."""
        tied = self.shape.head_is_tied and self.decoder_embedding is not None
        weight = self.decoder_embedding.word_embeddings.weight if tied else None
        assert self.output_layer is not None  # this is the last stage
        logits: Tensor = self.output_layer(hidden, weight=weight)[0]
        return logits[..., : self.num_logits]  # without the padding rows of the embedding


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
