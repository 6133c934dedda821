"""Running a packed micro-batch through a model, for each model family."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.data.batching import PackedBatch
from nemo_launcher.data.t5_batching import T5Batch
from nemo_launcher.models.attention import AttentionPlan
from nemo_launcher.models.gpt import FrozenGPT
from nemo_launcher.models.t5 import FrozenT5


def run_gpt(model: FrozenGPT, batch: PackedBatch) -> Tensor:
    """Return the logits of the batch's answer positions, [n, vocabulary] (hidden states before the last stage)."""
    return model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups), batch.logit_positions)


def run_t5(model: FrozenT5, batch: T5Batch) -> Tensor:
    """Return the logits of every decoder token, [n, vocabulary]: the sentinel and the end are in the loss as well."""
    return model(batch.encoder_row, batch.decoder_row)
