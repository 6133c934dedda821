# SPDX-License-Identifier: Apache-2.0
"""Lines on the progress of a long conversion, for a job's log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from torch import Tensor

SECONDS = 10
"""The least time between two lines, in seconds."""


def told(tensors: Iterable[tuple[str, Tensor]], size: int) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by name, and say from time to time how much of them is done. size: of all, in bytes."""
    done, last = 0, time.monotonic()
    for name, tensor in tensors:
        yield name, tensor
        done = min(done + tensor.nbytes, size)
        if time.monotonic() - last >= SECONDS:
            print(f"{done / 1e9:.1f} of {size / 1e9:.1f} GB", flush=True)
            last = time.monotonic()
