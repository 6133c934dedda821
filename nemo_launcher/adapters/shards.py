"""Adapter archives that NeMo wrote with a file for each rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.adapters.peft import nested
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.sharding import weight_files
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import Problem, UserError

_LAYER = re.compile(r"(.*layers\.)(\d+)(\D.*)")


def read_state(archive: Archive, split_dimensions: Mapping[str, int]) -> AdapterState:
    """Return the whole state of an adapter archive, in one file or one a rank.

    split_dimensions: the method's (registry.AdapterMethod). Pipeline stages count their layers from 0. Raises UserError
    when a file is absent or damaged, or the ranks' files do not fit together.
    """
    whole: AdapterState = {}
    for names in weight_files(archive):
        shards = [nested(read_tensors(archive, name)) for name in names]
        offsets = _layers_so_far(whole)
        for key in shards[0]:
            _check(shards, key, f"{archive.path}: {key}")
            whole[_moved(key, offsets)] = _merged([shard[key] for shard in shards], split_dimensions)
    return whole


def _check(shards: Sequence[Mapping[str, object]], key: str, where: str) -> None:
    for shard in shards:
        tensors = shard.get(key)
        if not isinstance(tensors, dict):
            what = "is not an adapter's dictionary of tensors, or is absent from some of the ranks' files"
            raise UserError(Problem(where, what, "name an adapter .nemo"))


def _merged(parts: Sequence[Mapping[str, Tensor]], split: Mapping[str, int]) -> dict[str, Tensor]:
    return {
        name: torch.cat([part[name] for part in parts], split[name]) if name in split and len(parts) > 1 else tensor
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
