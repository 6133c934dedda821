# SPDX-License-Identifier: Apache-2.0
"""The frozen GPT (also Llama): Megatron-core's GPTModel with packed rows and logits at selected positions only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.gpt.logit_rows import LogitRows
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.layer_shape import padded_vocab_size, transformer_config
from nemo_launcher.megatron import parallel, sequence
from nemo_launcher.megatron.alibi import Alibi
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.megatron.frozen_layer import use_frozen_parts
from nemo_launcher.megatron.frozen_linear import FrozenHead
from nemo_launcher.megatron.frozen_norm import FrozenNorm
from nemo_launcher.megatron.last_layer import LastLayer
from nemo_launcher.megatron.partial_stack import LayerInput, run_below, run_from
from nemo_launcher.megatron.rotary import Rotary, Rotation
from nemo_launcher.megatron.self_attention import (
    KeyHeadNorms,
    KeyNorm,
    NormedSelfAttention,
    QueryHeadNorms,
    QueryNorm,
    ScalableSelfAttention,
)
from nemo_launcher.megatron.sizes import ONE_RANK, ParallelSizes, check_division
from nemo_launcher.megatron.transfer import on_device
from nemo_launcher.megatron.variation import Variation


class FrozenGPT(GPTModel, FrozenModel):
    """A GPT without trainable parameters.

    It differs from GPTModel in megatron-core 0.16 in three ways: positions are passed with the tokens (a branch
    continues from the end of its prefix); attention follows an AttentionPlan, which also applies rotary positions; the
    head, and everything after the last attention, runs only on the requested positions. rotary: settings of rotary
    positions.
    """

    rotary: Rotary
    variation: Variation
    output_layer: FrozenHead
    _kept_frequencies: Tensor | None = None

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        plan: AttentionPlan,
        wanted: LogitRows | None = None,
        start: LayerInput | None = None,
        *,
        with_head: bool = True,
    ) -> Tensor:
        """Return the logits, or the hidden states, [s, b, h], of a pipeline stage that is not the last.

        tokens, position_ids: [b, s]. wanted: the n of the b * s positions, in sequence order, that have logits; None
        for all. start: what enters a layer (hidden_before), if the layers below need not run. Logits are
        [n, vocabulary], or [b, s, vocabulary] for all positions; without the head, its input is returned, [n, h] or
        [b, s, h] (logits_of). Source of the order of operations: megatron-core 0.16, GPTModel.forward.
        """
        without_logits = wanted is not None and not wanted.positions.numel()
        if without_logits:  # of a row that others continue, only keys and values are needed
            first = tokens.new_zeros(1)
            wanted = LogitRows(first, first, first)
        chosen = None if wanted is None else wanted.positions
        if wanted is not None and self.post_process and not self.config.sequence_parallel and plan.groups:
            plan.last_rows, chosen = wanted.rows, wanted.places
        self.place(plan, position_ids)
        hidden: Tensor
        if start is None:
            embedded = self.embed(tokens, position_ids) if self.pre_process else None
            hidden = self.decoder(hidden_states=embedded, attention_mask=plan)  # [s, b, h]
        else:
            hidden = run_from(self.decoder, start, attention_mask=plan)
        if not self.post_process:
            return hidden
        if without_logits:
            return hidden.new_empty(0, self.num_logits if with_head else hidden.size(-1))
        if self.config.sequence_parallel:
            hidden = sequence.gather_sequence(hidden)
        hidden = hidden.transpose(0, 1)  # [b, s, h]
        if chosen is not None:
            hidden = hidden.flatten(0, 1)[chosen]
        return self.logits_of(hidden) if with_head else hidden

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Return the logits, [..., vocabulary], of the last stage's output, [..., hidden]."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        return self.scaled_logits(self.output_layer(hidden, weight=weight)[0][..., : self.num_logits])

    def hidden_before(self, layer: int, tokens: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Return the hidden states that enter a layer (from 0), [s, b, hidden], of a model in one pipeline stage."""
        self.place(plan, position_ids)
        return run_below(self.decoder, self.embed(tokens, position_ids), layer, attention_mask=plan)

    def embed(self, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return the hidden states that enter the first layer, [s, b, hidden]; tokens, position_ids: [b, s]."""
        embedded: Tensor = self.embedding(input_ids=tokens, position_ids=position_ids)
        if self.variation.embedding_norm:
            embedded = self.embedding.word_embeddings_layernorm(embedded)
        multiplier = self.variation.embedding_multiplier
        # rounded to the model's dtype, as in transformers' Gemma
        return embedded if multiplier is None else embedded * embedded.new_tensor(multiplier)

    def scaled_logits(self, logits: Tensor) -> Tensor:
        """Return the logits with the family's divisor and cap."""
        if self.variation.logits_divisor is not None:
            logits = logits / self.variation.logits_divisor
        cap = self.variation.logits_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def set_input_tensor(self, tensors: Sequence[Tensor | None]) -> None:
        """Set the output of the previous pipeline stage; None on the first stage."""
        (hidden,) = tensors
        super().set_input_tensor([None if hidden is None else self.received(hidden)])

    @property
    def names_in_checkpoint(self) -> dict[str, str]:
        """Parameters with another name in checkpoints: the last stage's tied head is the embedding."""
        tied = self.share_embeddings_and_output_weights
        return {"output_layer.weight": "embedding.word_embeddings.weight"} if tied else {}

    def setup_embeddings_and_output_layer(self) -> None:
        """Create the frozen head instead of Megatron-core's, and a norm behind the embedding.

        GPTModel's constructor ends with this call. The stages of a tied model need no synchronization: each loads the
        embedding from the checkpoint.
        """
        if self.pre_process and self.config.variation.embedding_norm:
            norm = FrozenNorm(self.config, hidden_size=self.config.hidden_size, eps=self.config.layernorm_epsilon)
            self.embedding.word_embeddings_layernorm = norm
        if self.post_process:
            del self.output_layer  # frees its memory before the new head is allocated
            tied = self.pre_process and self.share_embeddings_and_output_weights
            self.output_layer = FrozenHead(
                self.config.hidden_size,
                self.vocab_size,
                config=self.config,
                bias=bool(self.config.variation.head_bias),
                is_tied=tied,
            )

    def place(self, plan: AttentionPlan, position_ids: Tensor) -> None:
        """Let attention know the positions of a row; position_ids: [b, s]."""
        plan.rotations = self.rotations(position_ids)
        if self.variation.alibi is not None:
            plan.alibi = Alibi.of_rank(
                self.variation.alibi,
                self.config.num_attention_heads,
                softmax_scale=self.config.softmax_scale or self.config.kv_channels**-0.5,
                rank=parallel.tensor_rank(),
                ranks=parallel.tensor_size(),
                device=position_ids.device,
            )

    def rotations(self, position_ids: Tensor) -> dict[str, Rotation]:
        """Return the rotary positions of a row by the names that layers have for them; position_ids: [b, s]."""
        if self.position_embedding_type != "rope":
            return {}
        angles = self.rotary.angles(position_ids, self._frequencies(position_ids.device))
        dtype = self.config.params_dtype
        pairs = bool(self.rotary.interleaved)
        found = {"global": Rotation.from_angles(angles, dtype, self.rotary.magnitude, interleaved=pairs)}
        if self.rotary.local_base is not None:
            found["local"] = Rotation.from_angles(self.rotary.local_angles(position_ids, angles.size(-1)), dtype)
        return found

    def _frequencies(self, device: torch.device) -> Tensor:
        """Return the rotary frequencies, [rotary_dim / 2], on the model's device, to which they are copied once."""
        kept = self._kept_frequencies
        if kept is None or kept.device != device:
            kept = self._kept_frequencies = on_device(self.rotary.scaled(self.rotary_pos_emb.inv_freq), device)
        return kept


def build_gpt(
    shape: GPTShape,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: ParallelSizes = ONE_RANK,
) -> FrozenGPT:
    """Return this rank's part of an uninitialized, frozen model in eval mode; its weights come from a checkpoint.

    dtype: of weights and activations. Megatron's process groups must exist (megatron.parallel.initialize). Raises
    UserError if the ranks cannot split the model evenly.
    """
    check_division(shape, tensor=sizes.tensor, pipeline=sizes.pipeline)
    model = FrozenGPT(
        config=transformer_config(shape, dtype=dtype, sizes=sizes, variation=shape.variation),
        transformer_layer_spec=_layers(shape),
        vocab_size=padded_vocab_size(shape.vocab_size, sizes.tensor),
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel.is_first_stage(),
        post_process=parallel.is_last_stage(),
        share_embeddings_and_output_weights=shape.share_embeddings_and_output_weights,
        position_embedding_type=shape.position_embedding_type,
        rotary_percent=shape.rotary.percentage,
        rotary_base=shape.rotary.base,
        parallel_output=False,
    )
    model.num_logits, model.rotary, model.variation = shape.vocab_size, shape.rotary, shape.variation
    for layer in model.decoder.layers:
        vary(layer, shape, layer.layer_number - 1)
    model.eval().requires_grad_(False)
    return model


def vary(layer: TransformerLayer, shape: GPTShape, number: int) -> None:
    """Set what a layer's attention does differently from other layers; number: the layer's, from 0."""
    variation, attention = shape.variation, layer.self_attention.core_attention
    attention.window, attention.softcap = variation.window_of(number), variation.attention_softcap
    is_local = shape.rotary.local_base is not None and variation.is_windowed(number)
    attention.rotation = ("local" if is_local else "global") if variation.is_rotated(number) else None


_HEAD_NORMS = {
    "head": (FrozenNorm, FrozenNorm),
    "all_heads": (QueryNorm, KeyNorm),
    "each_head": (QueryHeadNorms, KeyHeadNorms),
}
"""The norms of queries and keys for each of variation.QK_NORMS."""


def _layers(shape: GPTShape) -> TransformerBlockSubmodules:
    """Return the layer specifications of this pipeline stage."""
    spec = get_gpt_layer_local_spec(normalization=shape.normalization)
    attention, variation = spec.submodules.self_attention, shape.variation
    attention.module = ScalableSelfAttention if variation.qk_norm is None else NormedSelfAttention
    attention.submodules.core_attention = PackedAttention
    if variation.qk_norm is not None:
        attention.submodules.q_layernorm, attention.submodules.k_layernorm = _HEAD_NORMS[variation.qk_norm]
    if variation.norm_place == "after":
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = IdentityOp
    use_frozen_parts(spec, variation.experts)
    layers = [spec] * (shape.num_layers // parallel.pipeline_size())
    if parallel.is_last_stage():
        layers[-1] = replace(spec, module=LastLayer)
    return TransformerBlockSubmodules(layers, layer_norm=FrozenNorm)
