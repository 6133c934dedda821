# SPDX-License-Identifier: Apache-2.0
"""One process group instead of twenty, where the world is one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from megatron.core import parallel_state


@contextlib.contextmanager
def one_group_for_one_process() -> Iterator[None]:
    """Within this block, let all groups that Megatron-core makes be the world where that is one process.

    Each of its own is one of Gloo's, with threads that wake up a hundred times a second. Measured on two cores: 60
    threads fewer, which took 2% of a core while nothing was computed.
    """
    own = parallel_state.create_group
    if dist.get_world_size() == 1:
        parallel_state.create_group = lambda *_, **__: dist.group.WORLD
    try:
        yield
    finally:
        parallel_state.create_group = own
