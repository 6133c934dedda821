# SPDX-License-Identifier: Apache-2.0
"""The padded batches of a peer, and which of them are measured where it would take too long to run all."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def batches_of(lengths: Sequence[int], size: int, mode: str, part: int | None = None) -> list[list[int]]:
    """Return batches of `size` samples (indices); lengths: tokens of each sample.

    mode: `default`, random batches, as in a peer's documentation; `best`, samples of about the same length together;
    `plain`, in the order of the file. part: how many samples are enough, at least; None for all. Of random batches the
    first are taken, else batches at equal distances, which stand for all lengths.
    """
    order = list(range(len(lengths)))
    if mode != "plain":
        random.Random(1).shuffle(order)
    if mode == "best":
        order.sort(key=lambda index: lengths[index])
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    if part is not None and part < len(order):
        count = math.ceil(part / size)
        step = 1.0 if mode == "default" else len(batches) / count
        batches = [batches[int((number + 0.5) * step)] for number in range(count)]
    random.Random(2).shuffle(batches)
    return batches


def padded_tokens(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Return the number of tokens of batches (indices of samples), with padding; lengths: tokens of each sample."""
    return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
