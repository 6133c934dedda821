# SPDX-License-Identifier: Apache-2.0
"""A base cut into the pieces of a distributed checkpoint."""

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
from torch.distributed.checkpoint import filesystem, metadata

from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect

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


def refused(path: Path) -> str:
    for read in (inspect, load_base):
        with pytest.raises(UserError, match=path.name) as error:
            read(path)
    return str(error.value)


QKV = "model.decoder.layers.self_attention.linear_qkv.weight"
