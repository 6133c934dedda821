# SPDX-License-Identifier: Apache-2.0
"""Dropout whose masks depend only on a seed and on the module.

The masks do not depend on which worker runs a micro-batch or what ran before, and are the same in a recomputation.
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
    """Return a seed in [0, 2**63) that depends on the numbers and their order.

    It is a digest instead of Python's `hash`, so that a resumed training draws the same with every release of Python.
    """
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def current_dropout_seed() -> DropoutSeed:
    """Return this thread's dropout seed; None for torch's global generator."""
    return getattr(_local, "seed", None)


@contextmanager
def dropout_seed(seed: DropoutSeed) -> Iterator[None]:
    """Use a dropout seed for this thread within the body."""
    before = current_dropout_seed()
    _local.seed = seed
    try:
        yield
    finally:
        _local.seed = before


class SeededDropout(nn.Module):
    """Sets elements to zero with probability `rate` in train mode, and divides the others by 1 - rate.

    number: identifies the module, so that no two modules draw the same mask.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of any shape, with dropout in train mode."""
        if not self.training or self.rate == 0.0:
            return x
        seed = current_dropout_seed()
        if seed is None:
            return F.dropout(x, self.rate)
        generator = torch.Generator(x.device).manual_seed(seed_from(*seed, self.number))
        kept = torch.empty_like(x).bernoulli_(1.0 - self.rate, generator=generator)
        return x * kept.div_(1.0 - self.rate)
