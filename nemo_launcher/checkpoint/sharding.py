"""Base weights at any tensor and pipeline size, from an archive written at any other.

NeMo stores one file, or a file a rank: `mp_rank_TT/` (tensor parallel), `tp_rank_TT_pp_rank_PPP/` (with pipeline
stages). Stages count their layers from 0. Source: NeMo 1.20, nemo/utils/model_utils.py, inject_model_parallel_rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.gates import join_gates
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import Problem, UserError

# Which dimension of a weight (our names) is split over tensor-parallel ranks; every other weight is on all of them.
_SPLIT = (
    (re.compile(r".*\.(linear_qkv|linear_q|linear_kv|linear_fc1)\.(weight|bias)"), 0),
    (re.compile(r".*word_embeddings\.weight|output_layer\.(weight|bias)"), 0),
    (re.compile(r".*\.(linear_proj|linear_fc2)\.weight"), 1),
)
_GATED = re.compile(r".*\.linear_fc1\.(weight|bias)")
_LAYER = re.compile(r"((?:encoder|decoder)\.layers\.)(\d+)(\..*)")
_SHARD = re.compile(rf"(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/{re.escape(WEIGHTS_NAME)}")


def split_dimension(name: str) -> int | None:
    """Return the dimension of a weight that tensor-parallel ranks share, None when each has all of it."""
    return next((dimension for pattern, dimension in _SPLIT if pattern.fullmatch(name)), None)


class StoredWeights:
    """The weights of an open archive under our names, whole or one rank's part of them.

    rename: our name of a stored one, None for what is not needed, KeyError for what is unknown. gated: the first
    feed-forward matrix is [gate | up]. Nothing is read before it is asked for. Raises UserError when a rank's file is
    absent or names are unknown.
    """

    def __init__(self, archive: Archive, rename: Callable[[str], str | None], *, gated: bool) -> None:
        self._gated = gated
        self._parts: dict[str, list[Tensor]] = {}
        for stage in weight_files(archive):
            shards = [_renamed(read_tensors(archive, name), rename, f"{archive.path}: {name}") for name in stage]
            offsets = self._layers_so_far()
            for name in shards[0]:
                parts = [shard[name] for shard in shards if name in shard]
                if len(parts) < len(shards):
                    raise UserError(Problem(f"{archive.path}: {name}", "is absent from some of the ranks' files"))
                self._parts.setdefault(_moved(name, offsets), parts)

    def _layers_so_far(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for match in filter(None, map(_LAYER.fullmatch, self._parts)):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
        return counts

    @property
    def names(self) -> set[str]:
        """Our names of all weights."""
        return set(self._parts)

    def num_parameters(self, names: Iterable[str] | None = None) -> int:
        """Return how many numbers the stored weights of these names hold together; None: all."""
        stored = [
            (name, self._parts[name]) for name in (self.names if names is None else self.names.intersection(names))
        ]
        return sum(
            sum(part.numel() for part in parts) if split_dimension(name) is not None else parts[0].numel()
            for name, parts in stored
        )

    def first_numbers(self, name: str, count: int) -> Tensor:
        """Return up to `count` numbers from the beginning of a weight's first row, [n]."""
        part = self._parts[name][0]
        return (part[0] if part.dim() > 1 else part)[:count].clone()

    def rows(self, name: str) -> int:
        """Return the size of a weight's first dimension when it is whole."""
        parts = self._parts[name]
        return sum(part.size(0) for part in parts) if split_dimension(name) == 0 else parts[0].size(0)

    def read(self, name: str, rank: int = 0, ranks: int = 1) -> Tensor:
        """Return the part of a weight that tensor-parallel `rank` of `ranks` holds; mapped, not copied, where it can.

        An embedding whose rows do not divide by `ranks` is padded with zeros. Raises UserError when another weight does
        not divide.
        """
        parts, dimension = self._parts[name], split_dimension(name)
        if dimension is None or (len(parts) == 1 and ranks == 1):
            return parts[0]
        if self._gated and _GATED.fullmatch(name):
            gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
            return torch.cat([_slice(list(half), 0, rank, ranks, name) for half in (gates, ups)])
        return _slice(parts, dimension, rank, ranks, name)


def _slice(parts: list[Tensor], dimension: int, rank: int, ranks: int, name: str) -> Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dimension)
    size = whole.size(dimension)
    if size % ranks and name.endswith(("word_embeddings.weight", "output_layer.weight", "output_layer.bias")):
        whole = torch.cat([whole, whole.new_zeros(-size % ranks, *whole.shape[1:])])
        size = whole.size(0)
    if size % ranks:
        what = f"its dimension of {size} does not divide over {ranks} tensor-parallel ranks"
        raise UserError(Problem(name, what, "choose a tensor_model_parallel_size that divides it"))
    return whole.narrow(dimension, rank * (size // ranks), size // ranks)


def weight_files(archive: Archive) -> list[list[str]]:
    """Return the weight files, by pipeline stage and tensor-parallel rank.

    Raises UserError when there is none, or that of a rank is absent.
    """
    if WEIGHTS_NAME in archive.names:
        return [[WEIGHTS_NAME]]
    found: dict[tuple[int, int], str] = {}
    for name in archive.names:
        match = _SHARD.fullmatch(name)
        if match:
            found[int(match[3] or 0), int(match[1] or match[2])] = name
    if not found:
        raise UserError(Problem(f"{archive.path}: {WEIGHTS_NAME}", "is absent from the archive"))
    config = archive.config()
    sizes = {
        "pipeline_model_parallel_size": max(stage for stage, _ in found) + 1,
        "tensor_model_parallel_size": max(rank for _, rank in found) + 1,
    }
    stages, ranks = (max(size, int(config.get(key) or 1)) for key, size in sizes.items())
    absent = [(s, r) for s in range(stages) for r in range(ranks) if (s, r) not in found]
    if absent:
        where = ", ".join(f"tensor rank {rank} of pipeline stage {stage}" for stage, rank in absent[:4])
        what = f"the weights of {len(absent)} of {stages * ranks} ranks are absent: {where}"
        raise UserError(Problem(str(archive.path), what, "copy the archive again"))
    return [[found[stage, rank] for rank in range(ranks)] for stage in range(stages)]


def _renamed(stored: Mapping[str, Any], rename: Callable[[str], str | None], source: str) -> dict[str, Tensor]:
    weights, unknown = {}, []
    for name, value in stored.items():
        try:
            ours = rename(name)
        except KeyError:
            unknown.append(name)
            continue
        if ours is not None and not (isinstance(value, Tensor) and value.dim() > 0):
            raise UserError(Problem(f"{source}: {name}", "is not a tensor with dimensions"))
        if ours is not None:
            weights[ours] = value
    if unknown:
        what = f"{len(unknown)} weights are not this family's: {', '.join(sorted(unknown)[:3])} ..."
        raise UserError(Problem(source, what, "name a base checkpoint of the family that the stage trains"))
    return join_gates(weights)


def _moved(name: str, offsets: Mapping[str, int]) -> str:
    match = _LAYER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + offsets.get(match[1], 0)}{match[3]}" if match else name
