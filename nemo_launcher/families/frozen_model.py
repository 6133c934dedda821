# SPDX-License-Identifier: Apache-2.0
"""What the frozen model of every family is."""

from __future__ import annotations

import abc

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class FrozenModel(MegatronModule, abc.ABC):
    """A model whose parameters never train; `Family.run` knows how to call it.

    num_logits: the size of the vocabulary, without padding for tensor-parallel ranks.
    ends_backward: whether no earlier pipeline stage has adapters, so that the backward pass ends in this stage.
    """

    num_logits: int
    ends_backward = False

    def received(self, hidden: Tensor) -> Tensor:
        """Return the hidden states from the previous pipeline stage, without gradients if the backward pass ends here.

        Megatron-core's schedule receives a tensor that requires a gradient, and sends its gradient back: zeros then.
        """
        if not (self.ends_backward and hidden.requires_grad):
            return hidden
        hidden.grad = torch.zeros_like(hidden)
        return hidden.detach()

    @abc.abstractmethod
    def logits_of(self, hidden: Tensor) -> Tensor:
        """Return the logits, [..., num_logits], of the last stage's output, [..., hidden]."""

    @property
    @abc.abstractmethod
    def names_in_checkpoint(self) -> dict[str, str]:
        """Parameters that a checkpoint holds under another name: ours -> its name there."""
