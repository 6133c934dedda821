# SPDX-License-Identifier: Apache-2.0
"""Process groups of a single process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import ONE_RANK

pytestmark = pytest.mark.unit


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the names of threads")
def test_one_process_has_one_group_and_no_threads_for_others() -> None:
    parallel.initialize(ONE_RANK)
    assert parallel_state.get_tensor_model_parallel_group() is dist.group.WORLD
    assert parallel_state.get_data_parallel_group() is dist.group.WORLD
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    assert names.count("gloo_tcp_loop") <= 1
    other = parallel_state.create_group([0])
    assert other is not dist.group.WORLD
    dist.destroy_process_group(other)
