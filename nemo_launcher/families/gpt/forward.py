# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a packed micro-batch through a GPT."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.families.gpt.packing import PackedBatch
from nemo_launcher.megatron import sequence
from nemo_launcher.megatron.attention_path import AttentionPath
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.partial_stack import LayerInput


def run_gpt(model: FrozenGPT, batch: PackedBatch, path: AttentionPath | None = None) -> Tensor:
    """Return what the head reads at the batch's answer positions, [n, hidden], or a stage's output before the last.

    path: the rows that the batch continues; its own keys and values are stored there. Not with sequence parallelism.
    """
    tokens, position_ids, groups = batch.tokens, batch.position_ids, batch.groups
    if model.config.sequence_parallel and (added := sequence.padding(tokens)):
        groups = (*groups, Group(tokens.size(1), (added,)))  # attends only to itself and has no labels
        tokens, position_ids = sequence.pad(tokens, added), sequence.pad(position_ids, added)
    hidden = batch.hidden
    start = None if hidden is None else LayerInput(hidden.layer, hidden.read(tokens.device))
    plan = AttentionPlan(groups, path=path)
    output: Tensor = model(tokens, position_ids, plan, batch.logits, start, with_head=False)
    return output


def hidden_before(model: FrozenGPT, batch: PackedBatch, layer: int) -> Tensor:
    """Return the hidden states that enter a layer (from 0), [s, 1, hidden]."""
    return model.hidden_before(layer, batch.tokens, batch.position_ids, AttentionPlan(batch.groups))
