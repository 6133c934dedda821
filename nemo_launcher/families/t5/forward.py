# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a packed micro-batch through a T5."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.families.t5.model import FrozenT5, Row
from nemo_launcher.families.t5.packing import T5Batch
from nemo_launcher.megatron import parallel, sequence
from nemo_launcher.megatron.partial_stack import LayerInput


def run_t5(model: FrozenT5, batch: T5Batch) -> Tensor:
    """Return what the head reads for every decoder token, [n, hidden]; sentinel and end token are also in the loss."""
    rows = batch.encoder_row, batch.decoder_row
    if model.config.sequence_parallel and any(sequence.padding(row.tokens) for row in rows):
        # Padding is one more sample; its decoder tokens need encoder tokens to attend to.
        added = len(batch.encoder_row.lengths)
        rows = _with_padding(batch.encoder_row), _with_padding(batch.decoder_row, of_prompt=added)
    hidden = batch.hidden
    start = None if hidden is None else LayerInput(hidden.layer, hidden.read(batch.labels.device))
    output: Tensor = model(*rows, start)
    return output[: batch.labels.numel()] if parallel.is_last_stage() else output


def hidden_before(model: FrozenT5, batch: T5Batch, layer: int) -> Tensor:
    """Return the hidden states that enter an encoder layer (from 0), [s, 1, hidden]."""
    return model.hidden_before(layer, batch.encoder_row)


def _with_padding(row: Row, *, of_prompt: int = 0) -> Row:
    """Return the row with one more sample; of_prompt: the encoder's sample that a decoder's belongs to."""
    added = sequence.padding(row.tokens) or parallel.tensor_size()
    prompts = None if row.prompts is None else [*row.prompts, of_prompt]
    return Row(sequence.pad(row.tokens, added), [*row.lengths, added], prompts)
