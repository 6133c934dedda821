"""The frozen T5: Megatron-core's layers in two stacks, over rows of packed samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.relative_pos_embedding import RelativePositionEmbedding
from megatron.core.models.T5.t5_spec import decoder_model_with_local_spec, encoder_model_with_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import scatter_to_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models.attention import ScalableSelfAttention
from nemo_launcher.models.t5_attention import (
    BlockAttention,
    BlockPlan,
    CrossStepPlan,
    EncodedPrompts,
    ScalableCrossAttention,
    StepPlan,
)
from nemo_launcher.models.t5_config import StackShape, T5Shape, stack_config


@dataclass(frozen=True, slots=True)
class Row:
    """Samples one behind the other. tokens: [1, s]; lengths: of the samples, in tokens."""

    tokens: Tensor
    lengths: Sequence[int]

    def position_ids(self) -> Tensor:
        """Return the place of each token in its own sample, [1, s]."""
        places = [torch.arange(length, device=self.tokens.device) for length in self.lengths]
        return torch.cat(places)[None]


class FrozenT5(MegatronModule):
    """A T5 whose parameters never train.

    Differs from megatron-core 0.16's T5Model where NeMo's checkpoints do: encoder and decoder have position tables of
    their own and, on request, token embeddings and a head of their own; the head's bias is a choice. Rows are packed
    (models.t5_attention), positions count from 0 in each sample, and the head runs only on the positions asked for.
    """

    num_logits: int | None = None  # leaves out the rows that only pad the embedding for tensor parallelism

    def __init__(self, shape: T5Shape, *, dtype: torch.dtype, tensor_model_parallel_size: int = 1) -> None:
        options: dict[str, Any] = {"dtype": dtype, "tensor_model_parallel_size": tensor_model_parallel_size}
        config = stack_config(shape.decoder, **options)
        super().__init__(config=config)
        self.shape = shape
        encoder_config = stack_config(shape.encoder, **options)
        self.encoder_embedding = _embedding(shape, shape.encoder, encoder_config)
        self.decoder_embedding = _embedding(shape, shape.decoder, config)
        if shape.share_token_embeddings:
            self.decoder_embedding.word_embeddings = self.encoder_embedding.word_embeddings
        self.encoder_relative_positions = _relative_positions(shape.encoder, bidirectional=True, dtype=dtype)
        self.decoder_relative_positions = _relative_positions(shape.decoder, bidirectional=False, dtype=dtype)
        self.cross_relative_positions = (
            _relative_positions(shape.decoder, bidirectional=True, dtype=dtype) if shape.cross_attention_bias else None
        )
        self.encoder = _stack(encoder_config, _encoder_layer())
        self.decoder = _stack(config, _decoder_layer())
        self.output_layer = ColumnParallelLinear(
            shape.hidden_size,
            shape.vocab_size,
            config=config,
            init_method=config.init_method,
            bias=shape.head_bias,
            gather_output=True,
            skip_weight_param_allocation=shape.head_is_tied,
        )

    def forward(self, encoder_row: Row, decoder_row: Row) -> Tensor:
        """Return the logits of every decoder token, [decoder tokens, vocabulary]; the rows hold the same samples."""
        hidden = self.encode(encoder_row)
        encoder_lengths, decoder_lengths = encoder_row.lengths, decoder_row.lengths
        bias = _bias(self.decoder_relative_positions, max(decoder_lengths), causal=True)
        cross_bias = _bias(self.cross_relative_positions, max(decoder_lengths), max(encoder_lengths))
        hidden = self.decoder(
            hidden_states=self.decoder_embedding(decoder_row.tokens, decoder_row.position_ids()),
            attention_mask=BlockPlan(decoder_lengths, decoder_lengths, causal=True, bias=bias),
            context=hidden,
            context_mask=BlockPlan(decoder_lengths, encoder_lengths, bias=cross_bias),
        )
        return self._logits(hidden)[:, 0]

    def encode(self, row: Row) -> Tensor:
        """Return the encoder's output, [s, 1, hidden]."""
        bias = _bias(self.encoder_relative_positions, max(row.lengths))
        return self.encoder(
            hidden_states=self.encoder_embedding(row.tokens, row.position_ids()),
            attention_mask=BlockPlan(row.lengths, row.lengths, bias=bias),
        )

    def step(self, tokens: Tensor, prompts: EncodedPrompts, plan: StepPlan, cross_plan: CrossStepPlan) -> Tensor:
        """Run one new decoder token a sample ([samples]); return the logits of the next, [samples, vocabulary]."""
        positions = torch.full_like(tokens, cross_plan.place)[:, None]
        hidden = self.decoder(
            hidden_states=self.decoder_embedding(tokens[:, None], positions),
            attention_mask=plan,
            context=prompts,
            context_mask=cross_plan,
        )
        return self._logits(hidden)[0]

    def step_biases(self, slots: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the biases of self- and cross-attention for up to `slots` decoder and `width` encoder tokens."""
        return (
            _bias(self.decoder_relative_positions, slots, causal=True),
            _bias(self.cross_relative_positions, slots, width),
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        weight = self.decoder_embedding.word_embeddings.weight if self.shape.head_is_tied else None
        logits, _ = self.output_layer(hidden, weight=weight)
        return logits[..., : self.num_logits]


def build_t5(
    shape: T5Shape,
    *,
    dtype: torch.dtype = torch.float32,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
) -> FrozenT5:
    """Return this rank's part of an uninitialised, frozen model in eval mode; its weights come from a checkpoint.

    dtype: of weights and activations. Megatron's process groups must exist (models.parallel.initialize). Raises
    UserError for pipeline stages, into which a T5 is not cut.
    """
    if pipeline_model_parallel_size > 1:
        what = f"is {pipeline_model_parallel_size}, but T5 models are not cut into pipeline stages"
        raise UserError(Problem("pipeline_model_parallel_size", what, "write 1, and raise tensor_model_parallel_size"))
    model = FrozenT5(shape, dtype=dtype, tensor_model_parallel_size=tensor_model_parallel_size)
    return model.eval().requires_grad_(False)


def _embedding(shape: T5Shape, stack: StackShape, config: TransformerConfig) -> LanguageModelEmbedding:
    return LanguageModelEmbedding(
        config=config,
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.max_position_embeddings,
        position_embedding_type=stack.position_embedding_type,
    )


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


def _bias(
    positions: RelativePositionEmbedding | None, queries: int, keys: int | None = None, *, causal: bool = False
) -> Tensor | None:
    """Return what is added to the scores, [1, heads of this rank, queries, keys]; None without relative positions."""
    if positions is None:
        return None
    bias = positions(queries, queries if keys is None else keys)  # [1, heads, queries, keys]
    bias = scatter_to_tensor_model_parallel_region(bias.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    if causal:
        above = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
        bias = bias.masked_fill(above, float("-inf"))
    return bias


def _stack(config: TransformerConfig, layer: ModuleSpec) -> TransformerBlock:
    submodules = TransformerBlockSubmodules([layer] * config.num_layers, layer_norm=WrappedTorchNorm)
    return TransformerBlock(config=config, spec=submodules)


def _encoder_layer() -> ModuleSpec:
    spec = encoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = WrappedTorchNorm
    return spec


def _decoder_layer() -> ModuleSpec:
    spec = decoder_model_with_local_spec()
    spec.submodules.self_attention.module = ScalableSelfAttention
    spec.submodules.self_attention.submodules.core_attention = BlockAttention
    spec.submodules.cross_attention.module = ScalableCrossAttention
    spec.submodules.cross_attention.submodules.core_attention = BlockAttention
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = WrappedTorchNorm
    spec.submodules.pre_cross_attn_layernorm = WrappedTorchNorm
    return spec
