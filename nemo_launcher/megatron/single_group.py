# SPDX-License-Identifier: Apache-2.0
"""A single process group instead of twenty for a job with one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from megatron.core import parallel_state


@contextlib.contextmanager
def share_world_group() -> Iterator[None]:
    """Make Megatron-core use the world group for all its groups if there is one process.

    Each separate group would be a Gloo group with threads that wake up a hundred times a second. Measured on two cores:
    60 fewer threads, which took 2% of a core while nothing was computed.
    """
    own = parallel_state.create_group
    if dist.get_world_size() == 1:
        parallel_state.create_group = lambda *_, **__: dist.group.WORLD
    try:
        yield
    finally:
        parallel_state.create_group = own
