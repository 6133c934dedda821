"""Adapters' dropout, whose masks depend on the seed, the micro-batch and the adapter alone.

They are the same whoever runs a micro-batch, whatever ran before it, and when a layer is computed a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_local = threading.local()


@contextmanager
def dropout_seed(*seed: int) -> Iterator[None]:
    """Let what this thread draws inside depend on these numbers; outside, torch's own generator is drawn from."""
    before = getattr(_local, "seed", None)
    _local.seed = seed
    try:
        yield
    finally:
        _local.seed = before


class AdapterDropout(nn.Module):
    """Sets elements to zero with probability `rate` in train mode, and divides the others by 1 - rate.

    number: that of the adapter, so that no two draw the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, which is kept."""
        if not self.training or self.rate == 0.0:
            return x
        seed = getattr(_local, "seed", None)
        if seed is None:
            return F.dropout(x, self.rate)
        generator = torch.Generator(x.device).manual_seed(hash((*seed, self.number)) % 2**63)
        kept = torch.empty_like(x).bernoulli_(1.0 - self.rate, generator=generator)
        return x * kept.div_(1.0 - self.rate)
