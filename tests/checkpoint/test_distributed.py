# SPDX-License-Identifier: Apache-2.0
"""Distributed checkpoints in a `.nemo` (torch_dist): read exactly for any division into pieces, or refused."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive, write_archive
from nemo_launcher.checkpoint.dist_metadata import read_metadata
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from tests.checkpoint.test_tensors import Call
from tests.shared import shared_path

pytestmark = pytest.mark.unit

_LAYER = re.compile(r"(model\.decoder\.layers)\.(\d+)\.(.*)")
_ROWS = re.compile(r".*(linear_qkv|linear_fc1|word_embeddings)\.weight")
_COLUMNS = re.compile(r".*(linear_proj|linear_fc2)\.weight")


def stacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights as megatron-core stores them, with the layers of a stack in one tensor."""
    layers: dict[str, list[Tensor]] = {}
    rest = {}
    for name, weight in weights.items():
        match = _LAYER.fullmatch(name)
        if match:
            layers.setdefault(f"{match[1]}.{match[3]}", []).append(weight)
        else:
            rest[name] = weight
    return rest | {name: torch.stack(parts) for name, parts in layers.items()}


Pieces = dict[str, list[tuple[tuple[int, ...], Tensor]]]


def in_pieces(tensors: dict[str, Tensor], ranks: int) -> Pieces:
    """Cut the tensors like `ranks` tensor-parallel ranks, with separate layers."""
    cut: Pieces = {}
    for name, tensor in tensors.items():
        layered = ".layers." in name
        dimension = layered + (1 if _COLUMNS.fullmatch(name) else 0)
        many = (
            (ranks * 2 if "linear_fc1" in name else ranks) if _ROWS.fullmatch(name) or _COLUMNS.fullmatch(name) else 1
        )
        many = many if tensor.size(dimension) % many == 0 else 1
        cut[name] = []
        for layer, row in enumerate(tensor.split(1) if layered else [tensor]):
            start = 0
            for part in row.chunk(many, dimension) if many > 1 else [row]:
                offsets = [0] * tensor.dim()
                offsets[0], offsets[dimension] = layer if layered else 0, start
                if not layered and dimension == 0:
                    offsets[0] = start
                cut[name].append((tuple(offsets), part.clone()))
                start += part.size(dimension)
    return cut


def written(cut: Pieces, change: Callable[[metadata.Metadata], Any] = lambda m: m) -> dict[str, bytes]:
    """Return the members that torch.distributed.checkpoint would write for these pieces."""
    content, described, places = io.BytesIO(), {}, {}
    for name, parts in cut.items():
        size = [max(o[d] + t.size(d) for o, t in parts) for d in range(parts[0][1].dim())]
        chunks = [metadata.ChunkStorageMetadata(torch.Size(o), t.size()) for o, t in parts]
        properties = metadata.TensorProperties(parts[0][1].dtype)
        described[name] = metadata.TensorStorageMetadata(properties, torch.Size(size), chunks)
        for offsets, tensor in parts:
            start = content.tell()
            torch.save(tensor, content)
            index = metadata.MetadataIndex(name, torch.Size(offsets))
            places[index] = filesystem._StorageInfo("__0_0.distcp", start, content.tell() - start)
    described["model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2"] = metadata.BytesStorageMetadata()
    whole = change(metadata.Metadata(described, None, places))
    return {
        "model_weights/.metadata": pickle.dumps(whole),
        "model_weights/__0_0.distcp": content.getvalue(),
        "model_weights/metadata.json": b'{"sharded_backend":"torch_dist","sharded_backend_version":1}',
    }


def archive_of(base: Path, target: Path, members: dict[str, bytes]) -> Path:
    """Write a base with these members as its weights."""
    with Archive(base) as archive:
        names = archive.names - {WEIGHTS_NAME, CONFIG_NAME}
        write_archive(target, archive.config(), members | {name: archive.open(name).read() for name in names})
    return target


@pytest.fixture(scope="module")
def weights(tiny_base: Path) -> dict[str, Tensor]:
    with Archive(tiny_base) as archive:
        return {name: weight.clone() for name, weight in read_tensors(archive, WEIGHTS_NAME).items()}


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
    dcp.save(stacked(weights), checkpoint_id=tmp_path / "model_weights", no_dist=True)
    members = {f"model_weights/{file.name}": file.read_bytes() for file in (tmp_path / "model_weights").iterdir()}
    assert_is(archive_of(tiny_base, tmp_path / "dist.nemo", members), tiny_base)


# --- refused ------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    for read in (inspect, load_base):
        with pytest.raises(UserError, match=path.name) as error:
            read(path)
    return str(error.value)


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


QKV = "model.decoder.layers.self_attention.linear_qkv.weight"


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
