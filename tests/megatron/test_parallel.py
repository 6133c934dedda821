# SPDX-License-Identifier: Apache-2.0
"""Process groups of a single process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_launcher.errors import UserError
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import ONE_RANK
from nemo_launcher.runtime import ranks

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


def test_a_process_without_a_gpu_of_its_own_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "uses_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.local_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 3 of this node has no GPU: it can use 2") as caught:
        parallel.local_device()
    assert caught.value.problems[0].fix == "trainer.devices=2, or a job with more GPUs"
    assert chosen == [torch.device("cuda", 1)]
