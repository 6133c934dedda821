# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a packed micro-batch through a T5."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.families.t5.model import FrozenT5, Row
from nemo_launcher.families.t5.packing import T5Batch
from nemo_launcher.megatron import parallel, sequence


def run_t5(model: FrozenT5, batch: T5Batch) -> Tensor:
    """Return the logits of every decoder token, [n, vocabulary]; sentinel and end token are also in the loss."""
    rows = batch.encoder_row, batch.decoder_row
    if model.config.sequence_parallel and any(sequence.padding(row.tokens) for row in rows):
        # Padding is one more sample; its decoder tokens need encoder tokens to attend to.
        rows = _with_padding(batch.encoder_row), _with_padding(batch.decoder_row)
    output: Tensor = model(*rows)
    return output[: batch.labels.numel()] if parallel.is_last_stage() else output


def _with_padding(row: Row) -> Row:
    added = sequence.padding(row.tokens) or parallel.tensor_size()
    return Row(sequence.pad(row.tokens, added), [*row.lengths, added])
