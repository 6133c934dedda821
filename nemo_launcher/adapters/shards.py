# SPDX-License-Identifier: Apache-2.0
"""Adapter archives that NeMo wrote with one file per rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class StageLayers:
    """How the layers of a base lie on the pipeline stages of an adapter that has only some layers."""

    num_layers: int | None
    """The base's number of layers; None if it is unknown or the base has two stacks."""

    def first(self, stage: int, count: int, source: str) -> int:
        """Return the first layer of a stage out of `count`. Raises UserError if it is unknown."""
        if count == 1:
            return 0
        if self.num_layers is None or self.num_layers % count:
            what = "has adapters in some layers only, in files of several pipeline stages: their numbers are unknown"
            raise UserError(Problem(source, what, "export it with pipeline_model_parallel_size 1"))
        return stage * self.num_layers // count


def read_state(
    archive: Archive, settings: type[Settings], *, gated: bool, stages: StageLayers | None = None
) -> AdapterState:
    """Return the complete state of an adapter archive with one file, or one per rank.

    settings: of the adapters in it; gated: whether the model has a gated feed-forward; stages: for adapters in some
    layers only. Pipeline stages number their layers from 0. Raises UserError if a file is missing or damaged, if the
    ranks' files do not match, or if the layers of a stage are unknown.
    """
    whole: AdapterState = {}
    files = weight_files(archive)
    for stage, names in enumerate(files):
        shards = [nested(read_tensors(archive, name)) for name in names]
        offsets = _layer_counts(whole)
        if stages is not None:
            first = stages.first(stage, len(files), str(archive.path))
            offsets = {match[1]: first for match in filter(None, map(_LAYER.fullmatch, shards[0]))}
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
