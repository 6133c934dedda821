# SPDX-License-Identifier: Apache-2.0
"""Base weights at any tensor- and pipeline-parallel size, from an archive written at any other.

NeMo stores one file, or one file per rank: `mp_rank_TT/` (tensor parallel), `tp_rank_TT_pp_rank_PPP/` (with pipeline
stages). Stages number their layers from 0. Source: NeMo 1.20, nemo/utils/model_utils.py, inject_model_parallel_rank.
Later versions write a distributed checkpoint (checkpoint.distributed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.dist_metadata import distributed_folder
from nemo_launcher.checkpoint.distributed import read_distributed
from nemo_launcher.checkpoint.gates import UP_PROJECTION, up_projection_of
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.mapped import release_pages
from nemo_launcher.files.values import whole

# The dimension of weights (our names) that is split over tensor-parallel ranks; other weights are replicated.
_SPLIT = (
    (re.compile(r".*\.(linear_qkv|linear_q|linear_kv|linear_fc1|linear_fc1_up)\.(weight|bias)"), 0),
    (re.compile(r".*word_embeddings\.weight|output_layer\.(weight|bias)"), 0),
    (re.compile(r".*\.(linear_proj|linear_fc2)\.weight"), 1),
)
PADDED = ("word_embeddings.weight", "output_layer.weight", "output_layer.bias")
"""Suffixes of weights with a row per token, which are padded to a multiple of the ranks."""
_GATED = re.compile(r".*\.linear_fc1\.(weight|bias)")
_LAYER = re.compile(r"((?:encoder|decoder)\.layers\.)(0|[1-9][0-9]*)(\..*)")
_SHARD = re.compile(rf"(?:mp_rank_(\d+)|tp_rank_(\d+)_pp_rank_(\d+))/{re.escape(WEIGHTS_NAME)}")


def split_dimension(name: str) -> int | None:
    """Return the dimension of a weight that tensor-parallel ranks split, or None for a replicated weight."""
    return next((dimension for pattern, dimension in _SPLIT if pattern.fullmatch(name)), None)


class StoredWeights:
    """The weights of an open archive under our names, complete or one rank's part.

    rename: returns our name of a stored name, or None if it is not needed; raises KeyError for unknown names. gated:
    the first feed-forward matrix is [gate | up], which may be stored as two matrices. Weights are read on demand, and
    only the required part. Raises UserError if a rank's file is missing or names are unknown.
    """

    def __init__(self, archive: Archive, rename: Callable[[str], str | None], *, gated: bool) -> None:
        self._gated = gated
        self._parts: dict[str, list[Tensor]] = {}
        if distributed_folder(archive.names) is not None:
            self._parts = read_distributed(
                archive, rename, lambda name: None if gated and _GATED.fullmatch(name) else split_dimension(name)
            )
            return
        for stage in weight_files(archive):
            shards = [_renamed(read_tensors(archive, name), rename, f"{archive.path}: {name}") for name in stage]
            offsets = self._layer_counts()
            for name in shards[0]:
                parts = [shard[name] for shard in shards if name in shard]
                if len(parts) < len(shards):
                    raise UserError(Problem(f"{archive.path}: {name}", "is absent from some of the ranks' files"))
                self._parts.setdefault(_renumbered(name, offsets), parts)

    def _layer_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for match in filter(None, map(_LAYER.fullmatch, self._parts)):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
        return counts

    @property
    def names(self) -> set[str]:
        """Our names of all weights."""
        return {name for name in self._parts if not (self._gated and UP_PROJECTION in name)}

    def num_parameters(self, names: Iterable[str] | None = None) -> int:
        """Return the total number of elements in the stored weights with these names; None for all."""
        chosen = self.names if names is None else self.names.intersection(names)
        chosen |= set(map(up_projection_of, chosen))
        return sum(
            sum(part.numel() for part in parts) if split_dimension(name) is not None else parts[0].numel()
            for name, parts in self._parts.items()
            if name in chosen
        )

    def first_numbers(self, name: str, count: int) -> Tensor:
        """Return up to `count` values from the start of a weight's first row, [n]."""
        rows = [part[0] if part.dim() > 1 and part.size(0) else part.flatten() for part in self._parts[name]]
        row_is_split = split_dimension(name) == self._parts[name][0].dim() - 1
        return torch.cat([row[:count] for row in (rows if row_is_split else rows[:1])])[:count]

    def rows(self, name: str) -> int:
        """Return the size of a complete weight's first dimension."""
        return self.shape(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a complete weight, with separate gate and up-projection joined."""
        parts, dimension = self._parts[name], split_dimension(name)
        if self._gated and _GATED.fullmatch(name) is not None:
            parts = [*parts, *self._parts.get(up_projection_of(name), [])]
        shape = list(parts[0].shape)
        if dimension is not None and dimension < len(shape):
            shape[dimension] = sum(part.size(dimension) for part in parts if part.dim() == len(shape))
        return tuple(shape)

    def release(self) -> None:
        """Release the memory of everything that is mapped; the next access reads it from the file again."""
        for parts in self._parts.values():
            for part in parts:
                release_pages(part.data_ptr(), part.nbytes)

    def read(self, name: str, rank: int = 0, ranks: int = 1) -> Tensor:
        """Return the part of a weight for tensor-parallel `rank` of `ranks`, mapped instead of copied if possible.

        An embedding is padded with zero rows to a multiple of `ranks`. Raises UserError if another weight cannot be
        split evenly.
        """
        parts, dimension = self._parts[name], split_dimension(name)
        gated = self._gated and _GATED.fullmatch(name) is not None
        ups = self._parts.get(up_projection_of(name)) if gated else None
        if dimension is None or (len(parts) == 1 and ranks == 1 and ups is None):
            return parts[0]
        if not gated:
            return _slice(parts, dimension, rank, ranks, name)
        gates = parts
        if ups is None:
            gates, ups = (list(half) for half in zip(*(part.chunk(2) for part in parts), strict=True))
        return torch.cat([_slice(half, 0, rank, ranks, name) for half in (gates, ups)])


def _slice(parts: list[Tensor], dimension: int, rank: int, ranks: int, name: str) -> Tensor:
    """Return `rank`'s slice of the concatenated parts along `dimension`, as a view if it is in one part."""
    size = sum(part.size(dimension) for part in parts)
    padding = -size % ranks
    if padding and not name.endswith(PADDED):
        what = f"its dimension of {size} cannot be split evenly over {ranks} tensor-parallel ranks"
        raise UserError(Problem(name, what, "use a tensor_model_parallel_size that divides it"))
    if padding:
        parts = [*parts, parts[0].new_zeros(padding, *parts[0].shape[1:])]
    width = (size + padding) // ranks
    pieces, offset, start, stop = [], 0, rank * width, (rank + 1) * width
    for part in parts:
        first, last = max(start, offset), min(stop, offset + part.size(dimension))
        if first < last:
            pieces.append(part.narrow(dimension, first - offset, last - first))
        offset += part.size(dimension)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)


def weight_files(archive: Archive) -> list[list[str]]:
    """Return the weight files, by pipeline stage and tensor-parallel rank.

    Raises UserError if there are none, or if that of a rank is missing.
    """
    folder = distributed_folder(archive.names)
    if folder is not None:
        what = "is a distributed checkpoint, which is supported only for base models"
        raise UserError(Problem(f"{archive.path}: {folder}", what, f"save the adapter again, as {WEIGHTS_NAME}"))
    if WEIGHTS_NAME in archive.names:
        return [[WEIGHTS_NAME]]
    found: dict[tuple[int, int], str] = {}
    for name in archive.names:
        match = _SHARD.fullmatch(name)
        if match is None:
            continue
        place = int(match[3] or 0), int(match[1] or match[2])
        if place in found:
            what = f"holds the weights of a rank twice: {found[place]} and {name}"
            raise UserError(Problem(str(archive.path), what, "remove the file that does not belong to the checkpoint"))
        found[place] = name
    if not found:
        raise UserError(archive.absent(WEIGHTS_NAME))
    config = archive.config()
    sizes = {
        "pipeline_model_parallel_size": max(stage for stage, _ in found) + 1,
        "tensor_model_parallel_size": max(rank for _, rank in found) + 1,
    }
    stages, ranks = (max(size, whole(config, key) or 1) for key, size in sizes.items())
    absent = [(s, r) for s in range(stages) for r in range(ranks) if (s, r) not in found]
    if absent:
        where = ", ".join(f"tensor rank {rank} of pipeline stage {stage}" for stage, rank in absent[:4])
        what = f"the weights of {len(absent)} of {stages * ranks} ranks are absent: {where}"
        raise UserError(Problem(str(archive.path), what, "copy the archive again"))
    return [[found[stage, rank] for rank in range(ranks)] for stage in range(stages)]


def _renamed(stored: Mapping[str, object], rename: Callable[[str], str | None], source: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in stored.items():
        try:
            ours = rename(name)
        except KeyError:
            unknown.append(name)
            continue
        if ours is None:
            continue
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise UserError(Problem(f"{source}: {name}", "is not a tensor with dimensions"))
        if ours in weights:
            what = f"is {ours}, which the archive also holds under another name"
            raise UserError(Problem(f"{source}: {name}", what, "use another copy of the checkpoint"))
        weights[ours] = value
    if unknown:
        what = f"{len(unknown)} weights are not this family's: {', '.join(sorted(unknown)[:3])} ..."
        raise UserError(Problem(source, what, "use a base checkpoint of the family that the stage trains"))
    return weights


def _renumbered(name: str, offsets: Mapping[str, int]) -> str:
    match = _LAYER.fullmatch(name)
    return f"{match[1]}{int(match[2]) + offsets.get(match[1], 0)}{match[3]}" if match else name
