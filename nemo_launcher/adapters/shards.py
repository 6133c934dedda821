# SPDX-License-Identifier: Apache-2.0
"""Adapter archives that NeMo wrote with one file per rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from nemo_launcher.adapters import splitting
from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.adapters.peft import nested
from nemo_launcher.adapters.settings import Settings, Split
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.sharding import weight_files
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import Problem, UserError

_LAYER = re.compile(r"(.*layers\.)(0|[1-9][0-9]*)([^0-9].*)")


def read_state(archive: Archive, settings: type[Settings], *, gated: bool) -> AdapterState:
    """Return the complete state of an adapter archive with one file, or one per rank.

    settings: of the adapters in it; gated: whether the model has a gated feed-forward. Pipeline stages number their
    layers from 0. Raises UserError if a file is missing or damaged, or if the ranks' files do not match.
    """
    whole: AdapterState = {}
    for names in weight_files(archive):
        shards = [nested(read_tensors(archive, name)) for name in names]
        offsets = _layer_counts(whole)
        for key in shards[0]:
            splits = settings.splits(key.rpartition(":")[2])
            parts = _checked(shards, key, splits, f"{archive.path}: {key}")
            moved = _renumbered(key, offsets)
            if moved in whole:
                what = f"occurs twice as {moved}: the layer numbers of stages overlap"
                raise UserError(Problem(f"{archive.path}: {key}", what, "use another copy of the adapter"))
            whole[moved] = _merged(parts, splits, gated)
    return whole


def _checked(
    shards: Sequence[Mapping[str, object]], key: str, splits: Mapping[str, Split], where: str
) -> list[dict[str, Tensor]]:
    """Return the tensors of one adapter in each rank's file. Raises UserError where they do not fit each other."""
    parts = []
    for shard in shards:
        tensors = shard.get(key)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            what = "is not a dictionary of adapter tensors, or is missing in some ranks' files"
            raise UserError(Problem(where, what, "give the path of an adapter .nemo"))
        parts.append(tensors)
    shapes = [{name: _whole_shape(tensor, splits.get(name)) for name, tensor in part.items()} for part in parts]
    if any(other != shapes[0] for other in shapes):
        raise UserError(Problem(where, "has different tensors in the ranks' files", "copy the archive again"))
    return parts


def _whole_shape(tensor: Tensor, split: Split | None) -> tuple[int, ...]:
    """Return the shape with 0 for the split dimension, which must be equal on all ranks."""
    return tuple(0 if split and split.dimension == n else size for n, size in enumerate(tensor.shape))


def _merged(parts: Sequence[Mapping[str, Tensor]], splits: Mapping[str, Split], gated: bool) -> dict[str, Tensor]:
    return {
        name: splitting.join([part[name] for part in parts], splits[name], gated=gated)
        if name in splits and len(parts) > 1
        else tensor
        for name, tensor in parts[0].items()
    }


def _layer_counts(state: AdapterState) -> dict[str, int]:
    counts: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, state)):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def _renumbered(key: str, offsets: Mapping[str, int]) -> str:
    match = _LAYER.fullmatch(key)
    return f"{match[1]}{int(match[2]) + offsets.get(match[1], 0)}{match[3]}" if match else key
