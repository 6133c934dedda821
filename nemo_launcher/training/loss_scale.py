# SPDX-License-Identifier: Apache-2.0
"""Dynamic loss scaling for an fp16 base, which keeps small gradients from underflowing.

Source: Micikevicius et al. 2018, "Mixed Precision Training" (arXiv:1710.03740), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nemo_launcher.megatron import parallel

GROWTH_INTERVAL = 1000  # steps without overflow before the scale doubles; NeMo's native_amp_growth_interval


class LossScale:
    """The factor that multiplies the loss before the backward pass; constantly 1 unless the base is fp16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dynamic = dtype is torch.float16
        self.value = 2.0**16 if self.dynamic else 1.0
        self.exhausted = False
        """Whether gradients overflowed at the smallest scale, 1."""
        self._good_steps = 0

    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide the gradients by the scale; return whether they are finite on all ranks.

        On overflow the gradients are dropped, so that the optimizer changes nothing, and the scale is halved.
        """
        if not self.dynamic:
            return True
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        bad = sum((~torch.isfinite(grad)).sum() for grad in grads) if grads else torch.zeros(())
        if float(parallel.sum_over_model(torch.as_tensor(bad, dtype=torch.float32))) > 0:
            for parameter in parameters:
                parameter.grad = None
            self.exhausted = self.value <= 1.0
            self.value, self._good_steps = max(1.0, self.value / 2), 0
            return False
        for grad in grads:
            grad.div_(self.value)
        self._good_steps += 1
        if self._good_steps == GROWTH_INTERVAL:
            self.value, self._good_steps = self.value * 2, 0
        return True

    def state_dict(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state from a checkpoint."""
        self.value, self._good_steps = state["value"], int(state["good_steps"])
