# SPDX-License-Identifier: Apache-2.0
"""Running a packed micro-batch through a model, for each model family."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.families.gpt.packing import PackedBatch
from nemo_launcher.families.t5.model import FrozenT5, Row
from nemo_launcher.families.t5.packing import T5Batch
from nemo_launcher.megatron import parallel, sequence
from nemo_launcher.megatron.attention import AttentionPlan, Group


def run_gpt(model: FrozenGPT, batch: PackedBatch) -> Tensor:
    """Return the logits of the batch's answer positions, [n, vocabulary] (hidden states before the last stage)."""
    tokens, position_ids, groups = batch.tokens, batch.position_ids, batch.groups
    if model.config.sequence_parallel and (added := sequence.padding(tokens)):
        groups = (*groups, Group(tokens.size(1), (added,)))  # to itself alone, and without labels
        tokens, position_ids = sequence.pad(tokens, added), sequence.pad(position_ids, added)
    logits: Tensor = model(tokens, position_ids, AttentionPlan(groups), batch.logit_positions)
    return logits


def run_t5(model: FrozenT5, batch: T5Batch) -> Tensor:
    """Return the logits of every decoder token, [n, vocabulary]: the sentinel and the end are in the loss as well."""
    rows = batch.encoder_row, batch.decoder_row
    if model.config.sequence_parallel and any(sequence.padding(row.tokens) for row in rows):
        # one more sample, whose decoder tokens need encoder tokens to look at
        rows = _with_padding(batch.encoder_row), _with_padding(batch.decoder_row)
    output: Tensor = model(*rows)
    return output[: batch.labels.numel()] if parallel.is_last_stage() else output


def _with_padding(row: Row) -> Row:
    added = sequence.padding(row.tokens) or parallel.tensor_size()
    return Row(sequence.pad(row.tokens, added), [*row.lengths, added])
