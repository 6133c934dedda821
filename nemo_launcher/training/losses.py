"""The cross-entropy of each label, for each model family."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.data.batching import PackedBatch
from nemo_launcher.data.t5_batching import T5Batch
from nemo_launcher.models.attention import AttentionPlan
from nemo_launcher.models.gpt import FrozenGPT
from nemo_launcher.models.t5 import FrozenT5


def gpt_token_losses(model: FrozenGPT, batch: PackedBatch) -> Tensor:
    """Return the cross-entropy of each answer token in fp32, [n] (nats)."""
    logits = model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups), batch.logit_positions)
    return F.cross_entropy(logits.float(), batch.labels, reduction="none")


def t5_token_losses(model: FrozenT5, batch: T5Batch) -> Tensor:
    """Return the cross-entropy of each decoder token (sentinel and end included) in fp32, [n] (nats)."""
    return F.cross_entropy(model(batch.encoder_row, batch.decoder_row).float(), batch.labels, reduction="none")
