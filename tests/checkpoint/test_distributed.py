# SPDX-License-Identifier: Apache-2.0
"""Distributed checkpoints in a `.nemo` (torch_dist): read exactly for any division into pieces, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.dist_metadata import read_metadata
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from tests.checkpoint.pieces import QKV, Pieces, archive_of, in_pieces, refused, stacked, written

pytestmark = pytest.mark.unit


def assert_is(path: Path, base: Path) -> None:
    """Check that weights, fingerprint and number of parameters are those of the base."""
    found, wanted = load_base(path), load_base(base)
    torch.testing.assert_close(found.model.state_dict(), wanted.model.state_dict(), rtol=0, atol=0)
    assert (found.fingerprint, found.num_parameters) == (wanted.fingerprint, wanted.num_parameters)
    facts, told = inspect(path), inspect(base)
    assert facts.pop("layout") == "NeMo mcore, distributed checkpoint"
    assert {k: facts[k] for k in facts.keys() - {"file", "bytes"}} == {
        k: told[k] for k in told.keys() - {"file", "bytes", "layout"}
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_pieces_of_any_number_of_ranks_are_the_base(
    ranks: int, weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path
) -> None:
    path = archive_of(tiny_base, tmp_path / "dist.nemo", written(in_pieces(stacked(weights), ranks)))
    assert_is(path, tiny_base)
    outline = read_outline(path)
    assert outline is not None
    assert outline.weights_problem() is None
    assert outline.weight_bytes > 27_008 * 4


def test_layers_by_number_are_read_too(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    cut: Pieces = {name: [((0,) * weight.dim(), weight)] for name, weight in weights.items()}
    assert_is(archive_of(tiny_base, tmp_path / "dist.nemo", written(cut)), tiny_base)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_torch_writes_itself_is_read(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    dcp.save(stacked(weights), checkpoint_id=tmp_path / "model_weights")
    members = {f"model_weights/{file.name}": file.read_bytes() for file in (tmp_path / "model_weights").iterdir()}
    assert_is(archive_of(tiny_base, tmp_path / "dist.nemo", members), tiny_base)


def test_a_changed_number_is_seen(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    members = written(in_pieces(stacked(weights), 1))
    content = bytearray(members["model_weights/__0_0.distcp"])
    name = "model.decoder.final_layernorm.weight"
    content[bytes(content).index(weights[name].numpy().tobytes()) + 2] ^= 1
    members["model_weights/__0_0.distcp"] = bytes(content)
    assert "the checksum of 'data/0' is wrong" in refused(archive_of(tiny_base, tmp_path / "a.nemo", members))


def test_an_absent_tensor_is_named(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    fewer = {name: tensor for name, tensor in stacked(weights).items() if name != QKV}
    path = archive_of(tiny_base, tmp_path / "a.nemo", written(in_pieces(fewer, 1)))
    with pytest.raises(UserError, match=r"decoder\.layers\.0\.self_attention\.linear_qkv\.weight: is absent"):
        load_base(path)


def test_an_adapter_in_this_form_is_refused_by_name(tmp_path: Path) -> None:
    config = {"language_model_path": "/base.nemo"}
    write_archive(tmp_path / "a.nemo", config, {"model_weights/.metadata": b"x", "model_weights/a.distcp": b"x"})
    with pytest.raises(UserError, match=r"a\.nemo: model_weights: is a distributed checkpoint"):
        read_adapter(tmp_path / "a.nemo")


def test_the_metadata_of_a_large_model_is_read_in_linear_time(tmp_path: Path) -> None:
    """Places are looked up in the table, not searched."""
    cut: Pieces = {"model.a": [((row, 0), torch.zeros(1, 1)) for row in range(2000)]}
    write_archive(tmp_path / "a.nemo", {"a": 1}, written(cut))
    with Archive(tmp_path / "a.nemo") as archive:
        assert len(read_metadata(archive)["model.a"].pieces) == 2000
