# SPDX-License-Identifier: Apache-2.0
"""Loading of adapters that NeMo wrote with one file per rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.engine import BOTTLENECK, adapted
from tests.shared import shared_path

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["adapter_gpt", "ia3_gpt", "linear_gpt", "adapter_t5", "ia3_t5", "linear_t5"])
def test_nvidias_adapters_of_two_ranks_are_those_of_one(name: str) -> None:
    one = read_adapter(shared_path(f"oracle/{name}.nemo"))[1]
    two = read_adapter(shared_path(f"oracle/{name}_tp2.nemo"))[1]
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    base = load_base(shared_path(f"oracle/base_{name.partition('_')[2]}_tp2.nemo"))
    load_adapter(shared_path(f"oracle/{name}_tp2.nemo"), base)


def test_pipeline_stages_count_on(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK, "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    whole = adapted(tiny_base, config)[1].state_dict()
    members = {}
    for stage in range(2):
        for rank in range(2):
            part = {
                key.replace(f"layers.{stage}", "layers.0"): {
                    name: cut(tensor, name, rank).clone() for name, tensor in tensors.items()
                }
                for key, tensors in whole.items()
                if f"layers.{stage}" in key
            }
            name = f"tp_rank_{rank:02d}_pp_rank_{stage:03d}/model_weights.ckpt"
            members[name] = lambda stream, part=part: torch.save(part, stream)
    write_archive(tmp_path / "a.nemo", config, members)
    torch.testing.assert_close(read_adapter(tmp_path / "a.nemo")[1], whole, rtol=0, atol=0)
    del members["tp_rank_01_pp_rank_001/model_weights.ckpt"]
    write_archive(tmp_path / "b.nemo", config, members)
    with pytest.raises(UserError, match="tensor rank 1 of pipeline stage 1"):
        read_adapter(tmp_path / "b.nemo")


def cut(tensor: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    dimension = {"linear_in.weight": 0, "linear_out.weight": 1}.get(name)
    return tensor if dimension is None else tensor.chunk(2, dimension)[rank]


def test_ranks_that_do_not_fit_together_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK, "tensor_model_parallel_size": 2}
    state = adapted(tiny_base, config)[1].state_dict()
    first = next(iter(state))
    less = {key: tensors for key, tensors in state.items() if key != first}
    members = {
        f"mp_rank_{rank:02d}/model_weights.ckpt": lambda stream, part=part: torch.save(part, stream)
        for rank, part in enumerate((state, less))
    }
    write_archive(tmp_path / "a.nemo", config, members)
    with Archive(tmp_path / "a.nemo") as archive:
        assert len(archive.names) == 3
    with pytest.raises(UserError, match="missing in some ranks' files"):
        read_adapter(tmp_path / "a.nemo")
