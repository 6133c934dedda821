# SPDX-License-Identifier: Apache-2.0
"""One forward pass through the pipeline stages, for generation, without a schedule or a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import StackStages


def relay(
    forward: Callable[[Tensor | None], Tensor],
    stages: StackStages,
    *,
    hidden: tuple[int, ...],
    result: tuple[int, ...],
    like: Tensor,
) -> Tensor:
    """Return on every rank the result of `forward` on the last stage; all ranks must call this.

    forward: takes the output of the previous stage, or None on the first stage; hidden, result: the shapes of the
    tensors between stages and of the result; like: a tensor with their dtype and device.
    """
    if parallel.pipeline_size() == 1:
        return forward(None)
    group, stage = parallel_state.get_pipeline_model_parallel_group(), parallel.pipeline_rank()
    output = None
    if stage in stages:
        received = None
        if stage > stages.first:
            received = torch.empty(hidden, dtype=like.dtype, device=like.device)
            dist.recv(received, group=group, group_src=stage - 1)
        output = forward(received).contiguous()
        if stage < stages.last:
            dist.send(output, group=group, group_dst=stage + 1)
    if output is None or stage != stages.last:
        output = torch.empty(result, dtype=like.dtype, device=like.device)
    dist.broadcast(output, group=group, group_src=stages.last)
    return output
