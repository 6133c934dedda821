# SPDX-License-Identifier: Apache-2.0
"""Adapter archives that NeMo wrote with a file for each rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    """Return the whole state of an adapter archive, in one file or one a rank.

    settings: of the adapters in it; gated: does the model's feed-forward have a gate? Pipeline stages count their
    layers from 0. Raises UserError when a file is absent or damaged, or the ranks' files do not fit together.
    """
    whole: AdapterState = {}
    for names in weight_files(archive):
        shards = [nested(read_tensors(archive, name)) for name in names]
        offsets = _layers_so_far(whole)
        for key in shards[0]:
            splits = settings.splits(key.rpartition(":")[2])
            _check(shards, key, splits, f"{archive.path}: {key}")
            moved = _moved(key, offsets)
            if moved in whole:
                what = f"stands twice for {moved}: numbers of layers overlap"
                raise UserError(Problem(f"{archive.path}: {key}", what, "name another copy of the adapter"))
            whole[moved] = _merged([shard[key] for shard in shards], splits, gated)
    return whole


def _check(shards: Sequence[Mapping[str, Any]], key: str, splits: Mapping[str, Split], where: str) -> None:
    for shard in shards:
        tensors = shard.get(key)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            what = "is not an adapter's dictionary of tensors, or is absent from some of the ranks' files"
            raise UserError(Problem(where, what, "name an adapter .nemo"))
    shapes = [{name: _whole_shape(tensor, splits.get(name)) for name, tensor in shard[key].items()} for shard in shards]
    if any(other != shapes[0] for other in shapes):
        raise UserError(Problem(where, "has other tensors in some of the ranks' files", "copy the archive again"))


def _whole_shape(tensor: Tensor, split: Split | None) -> tuple[int, ...]:
    """Return what the shapes of all ranks' parts have in common."""
    return tuple(0 if split and split.dimension == n else size for n, size in enumerate(tensor.shape))


def _merged(parts: Sequence[Mapping[str, Tensor]], splits: Mapping[str, Split], gated: bool) -> dict[str, Tensor]:
    return {
        name: splitting.join([part[name] for part in parts], splits[name], gated=gated)
        if name in splits and len(parts) > 1
        else tensor
        for name, tensor in parts[0].items()
    }


def _layers_so_far(state: AdapterState) -> dict[str, int]:
    counts: dict[str, int] = {}
    for match in filter(None, map(_LAYER.fullmatch, state)):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def _moved(key: str, offsets: Mapping[str, int]) -> str:
    match = _LAYER.fullmatch(key)
    return f"{match[1]}{int(match[2]) + offsets.get(match[1], 0)}{match[3]}" if match else key
