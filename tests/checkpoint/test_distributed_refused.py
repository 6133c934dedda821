# SPDX-License-Identifier: Apache-2.0
"""Distributed checkpoints that are refused: metadata that names something else, pieces that are no whole."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata

from nemo_launcher.checkpoint.outline import read_outline
from tests.checkpoint.pieces import QKV, archive_of, in_pieces, refused, stacked, written
from tests.checkpoint.test_tensors import Call
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def test_a_checkpoint_without_its_metadata_says_what_it_is() -> None:
    path = shared_path("cases/nemo_dist_checkpoint/dist.nemo")
    assert "model_weights/.metadata: is absent: the weights are a distributed checkpoint" in refused(path)
    outline = read_outline(path)
    assert outline is not None
    assert "names that start with a dot" in outline.weights_problem().fix


def test_zarr_is_named_with_the_way_out(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    by_names = {"model_weights/metadata.json": b'{"sharded_backend":"zarr"}', "model_weights/a/.zarray": b"{}"}
    assert "'zarr' format; only torch_dist is supported" in refused(
        archive_of(tiny_base, tmp_path / "a.nemo", by_names)
    )
    other = written(in_pieces(stacked(weights), 1)) | {"model_weights/metadata.json": b'{"sharded_backend":"new"}'}
    assert "dist_ckpt_format=torch_dist" in refused(archive_of(tiny_base, tmp_path / "b.nemo", other))


def test_nothing_in_the_metadata_is_run(tiny_base: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    call = pickle.dumps({"a": Call(exec, f"import pathlib; pathlib.Path({str(proof)!r}).touch()")})
    path = archive_of(tiny_base, tmp_path / "a.nemo", {"model_weights/.metadata": call, "model_weights/x.distcp": b"x"})
    assert "builtins.exec, which is not part of a tensor's description; it is not executed" in refused(path)
    assert not proof.exists()


def moved(m: metadata.Metadata) -> metadata.Metadata:
    index = next(index for index in m.storage_data if index.fqn == QKV)
    m.storage_data[index].offset += 8
    return m


def elsewhere(path: str) -> Callable[[metadata.Metadata], metadata.Metadata]:
    def change(m: metadata.Metadata) -> metadata.Metadata:
        for info in m.storage_data.values():
            info.relative_path = path
        return m

    return change


def doubled(value: Any) -> Any:
    """Return a value that contains itself 2**50 times, through 50 nested tuples."""
    for _ in range(50):
        value = (value, value)
    return value


def named(value: Any) -> Callable[[metadata.Metadata], metadata.Metadata]:
    def change(m: metadata.Metadata) -> metadata.Metadata:
        info = next(iter(m.storage_data.values()))
        m.storage_data = {metadata.MetadataIndex("a"): info}
        object.__setattr__(next(iter(m.storage_data)), "fqn", value)
        return m

    return change


def without_a_piece(m: metadata.Metadata) -> metadata.Metadata:
    m.state_dict_metadata[QKV].chunks.pop()
    return m


def one_piece_twice(m: metadata.Metadata) -> metadata.Metadata:
    chunks = m.state_dict_metadata[QKV].chunks
    chunks[-1] = chunks[0]
    return m


def larger(m: metadata.Metadata) -> metadata.Metadata:
    m.state_dict_metadata[QKV].size = torch.Size([2, 2**39, 32])
    return m


def without_places(m: metadata.Metadata) -> metadata.Metadata:
    m.storage_data = {}
    return m


def other_type(m: metadata.Metadata) -> metadata.Metadata:
    m.state_dict_metadata[QKV].properties = metadata.TensorProperties(torch.float64)
    return m


@pytest.mark.parametrize(
    "change",
    [
        moved,
        elsewhere("/etc/passwd"),
        elsewhere("../model_config.yaml"),
        elsewhere("absent.distcp"),
        elsewhere("metadata.json"),
        elsewhere(doubled("a")),
        named(doubled("a")),
        named(1),
        without_a_piece,
        one_piece_twice,
        larger,
        without_places,
        other_type,
        lambda m: None,
        lambda m: [m],
        lambda m: m.state_dict_metadata,
        lambda m: metadata.Metadata({}, None, {}),
        lambda m: metadata.Metadata([1], None, {}),
    ],
)
def test_pieces_that_are_no_whole_are_refused(
    change: Callable[[Any], Any], weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path
) -> None:
    members = written(in_pieces(stacked(weights), 2), change)
    assert "model_weights/" in refused(archive_of(tiny_base, tmp_path / "a.nemo", members))


@pytest.mark.parametrize("end", [0, 10, 3000, -1])
def test_a_file_of_pieces_that_was_cut_short_is_named(
    end: int, weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path
) -> None:
    members = written(in_pieces(stacked(weights), 1))
    members["model_weights/__0_0.distcp"] = members["model_weights/__0_0.distcp"][:end]
    assert "ends after the end" in refused(archive_of(tiny_base, tmp_path / "a.nemo", members))
