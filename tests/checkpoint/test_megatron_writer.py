# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that megatron-core itself writes, as two tensor-parallel ranks with an optimizer's state, are bases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.families.base import load_base
from tests.checkpoint.pieces import archive_of
from tests.jobs import run_process
from tests.nemo2 import assert_same, folder_of

pytestmark = pytest.mark.integration

_LAYER = re.compile(r"(decoder\.layers)\.(\d+)\.(.*)")
_ROWS, _COLUMNS = re.compile(r".*(linear_qkv|word_embeddings)\.weight"), re.compile(r".*(linear_proj|linear_fc2).*t")


def write(weights: dict[str, Tensor], prefix: str, folder: Path) -> None:
    """Write the weights (decoder.layers.0...) with megatron-core, in a process of its own."""
    import torch.distributed as dist

    # megatron-core's writer waits for the GPU and reduces a number on it; there is none here
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    dist.init_process_group("gloo", init_method=f"file://{folder.parent}/meeting", rank=0, world_size=1)
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    folder.mkdir()
    state: dict[str, Any] = {"common": {"iteration": 7}}
    for name, weight in weights.items():
        state |= {f"{name} {i}": part for i, part in enumerate(shards(f"{prefix}{name}", weight))}
        state |= {f"o {name} {i}": part for i, part in enumerate(shards(f"optimizer.state.exp_avg.{name}", weight))}
    extra = f"{prefix}decoder.layers.mlp.linear_fc1._extra_state"
    state["extra"] = ShardedObject(extra, torch.zeros(3), (1,), (0,))
    dist_checkpointing.save(state, str(folder))


def shards(name: str, weight: Tensor) -> list[Any]:
    """Return a weight as two tensor-parallel ranks hold it, in a stack of two layers."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    match = _LAYER.search(name)
    layer = ((0, int(match[2]), 2),) if match else ()
    stack = len(layer)
    name = _LAYER.sub(r"\1.\3", name)
    if _COLUMNS.fullmatch(name):
        parts = [(part, (1 + stack, rank, 2)) for rank, part in enumerate(weight.chunk(2, 1))]
    elif ".linear_fc1.weight" in name:  # gate and up-projection are split one by one
        parts = [(part, (stack, number, 4)) for number, part in enumerate(weight.chunk(4))]
    elif _ROWS.fullmatch(name) and weight.size(0) % 2 == 0:
        parts = [(part, (stack, rank, 2)) for rank, part in enumerate(weight.chunk(2))]
    else:
        return [ShardedTensor.from_rank_offsets(name, weight, *layer, prepend_axis_num=stack)]
    return [
        ShardedTensor.from_rank_offsets(name, part.contiguous(), *layer, split, prepend_axis_num=stack)
        for part, split in parts
    ]


def test_both_forms_equal_the_base(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    ours = {name.removeprefix("model."): weight for name, weight in weights.items()}
    folder = folder_of(tiny_base, {}, tmp_path / "nemo2")
    for prefix, target in (("module.", folder / "weights"), ("model.", tmp_path / "nemo1/model_weights")):
        target.parent.mkdir(exist_ok=True)
        job = run_process(write, (ours, prefix, target), target.parent / "log")
        assert job.status == 0, job.output
    assert len(list((folder / "weights").glob("*.distcp"))) > 1
    assert_same(folder, tiny_base)
    members = {f"model_weights/{file.name}": file.read_bytes() for file in (tmp_path / "nemo1/model_weights").iterdir()}
    path = archive_of(tiny_base, tmp_path / "nemo1.nemo", members)
    assert_same(path, tiny_base)
    assert load_base(path).fingerprint == load_base(folder).fingerprint
