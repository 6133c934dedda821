# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks depend on a seed and the module alone.

They are the same whoever runs a micro-batch, whatever ran before it, and when a layer is computed a second time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_local = threading.local()


DropoutSeed = tuple[int, ...] | None


def seed_from(*numbers: int) -> int:
    """Return a seed in [0, 2**63) that depends on all these numbers and their order.

    A digest, not Python's `hash`, so that a resumed training draws the same under every release of Python.
    """
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def current_dropout_seed() -> DropoutSeed:
    """Return what this thread's draws depend on; None: on torch's own generator."""
    return getattr(_local, "seed", None)


@contextmanager
def dropout_seed(seed: DropoutSeed) -> Iterator[None]:
    """Let what this thread draws inside depend on these numbers."""
    before = current_dropout_seed()
    _local.seed = seed
    try:
        yield
    finally:
        _local.seed = before


class SeededDropout(nn.Module):
    """Sets elements to zero with probability `rate` in train mode, and divides the others by 1 - rate.

    number: that of the module, so that no two draw the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, which is kept."""
        if not self.training or self.rate == 0.0:
            return x
        seed = current_dropout_seed()
        if seed is None:
            return F.dropout(x, self.rate)
        generator = torch.Generator(x.device).manual_seed(seed_from(*seed, self.number))
        kept = torch.empty_like(x).bernoulli_(1.0 - self.rate, generator=generator)
        return x * kept.div_(1.0 - self.rate)
