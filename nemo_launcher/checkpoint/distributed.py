# SPDX-License-Identifier: Apache-2.0
"""Weights of a distributed checkpoint, mapped in place and renamed.

Like NeMo, Megatron-core stores the layers of a stack as one tensor, [layers, ...], under a name without the layer's
number. The pieces of tensor-parallel ranks are identified by their offsets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.dist_metadata import Piece, StoredTensor, read_metadata
from nemo_launcher.checkpoint.tensors import CHECKED_BYTES, Region, readable_tensor
from nemo_launcher.errors import Problem, UserError

_STACKED = re.compile(r"(.*\b(?:encoder|decoder)\.layers)\.(?!\d+\.)(.*)")


@dataclass(frozen=True, slots=True)
class _Part:
    """A mapped piece of a weight."""

    offsets: tuple[int, ...]
    """Its start in the weight, by dimension."""
    tensor: Tensor
    """Its values."""


def read_distributed(
    archive: Archive, rename: Callable[[str], str | None], split_dimension: Callable[[str], int | None]
) -> dict[str, list[Tensor]]:
    """Return the weights under our names, each as consecutive parts along its split dimension.

    rename, split_dimension: see sharding.StoredWeights. A weight in one piece is mapped; a weight split along other
    dimensions is copied into memory. Raises UserError if weights are damaged or belong to another family.
    """
    stored = read_metadata(archive)
    check = sum(archive.size(name) for name in archive.names) <= CHECKED_BYTES
    weights: dict[str, list[Tensor]] = {}
    unknown = []
    for name, tensor in stored.items():
        mapped: list[Tensor] | None = None
        for number, single in enumerate(_layer_names(name, tensor)):
            try:
                ours = rename(single)
            except KeyError:
                unknown.append(single)
                continue
            if ours in weights:
                what = f"is {ours}, which the checkpoint also holds under another name"
                raise UserError(Problem(f"{archive.path}: {single}", what, "use another copy of the checkpoint"))
            if ours is not None:
                layer = number if _STACKED.fullmatch(name) else None
                mapped = mapped or [_mapped(archive, name, tensor, piece, check) for piece in tensor.pieces]
                parts = _parts(tensor, mapped, layer)
                weights[ours] = _along(parts, split_dimension(ours))
    if unknown:
        what = f"{len(unknown)} weights are not this family's: {', '.join(sorted(unknown)[:3])} ..."
        raise UserError(Problem(str(archive.path), what, "use a base checkpoint of the family that the stage trains"))
    return weights


def _layer_names(name: str, tensor: StoredTensor) -> list[str]:
    """Return the names of the layers in a stacked tensor, or the name of a single weight."""
    match = _STACKED.fullmatch(name)
    if match is None:
        return [name]
    return [f"{match[1]}.{layer}.{match[2]}" for layer in range(tensor.shape[0] if tensor.shape else 0)]


def _parts(tensor: StoredTensor, mapped: list[Tensor], layer: int | None) -> list[_Part]:
    """Return the pieces of a weight; layer: its index in a stacked tensor, or None for a single weight."""
    pieces = zip(tensor.pieces, mapped, strict=True)
    if layer is None:
        return [_Part(piece.offsets, content) for piece, content in pieces]
    return [
        _Part(piece.offsets[1:], content[layer - piece.offsets[0]])
        for piece, content in pieces
        if piece.offsets[0] <= layer < piece.offsets[0] + piece.sizes[0]
    ]


def _mapped(archive: Archive, name: str, tensor: StoredTensor, piece: Piece, check: bool) -> Tensor:
    path, offset = archive.locate(piece.file)
    source = f"{archive.path}: {piece.file}: {name}"
    mapped = readable_tensor(Region(path, offset + piece.start, piece.length), source, check=check)
    if tuple(mapped.shape) != piece.sizes or str(mapped.dtype).removeprefix("torch.") != tensor.dtype:
        what = f"is {tuple(mapped.shape)} of {mapped.dtype}, but `.metadata` says {piece.sizes} of {tensor.dtype}"
        raise UserError(Problem(source, what, "copy the archive again"))
    return mapped


def _along(parts: list[_Part], split: int | None) -> list[Tensor]:
    """Return the parts unchanged if they are consecutive along `split`, otherwise merged in memory."""
    if len(parts) == 1:
        return [parts[0].tensor]
    first = parts[0].offsets
    others = [offset for part in parts for d, offset in enumerate(part.offsets) if d != split and offset != first[d]]
    if split is not None and not others:
        return [part.tensor for part in sorted(parts, key=lambda part: part.offsets[split])]
    dimensions = range(len(first))
    shape = [max(part.offsets[d] + part.tensor.size(d) for part in parts) for d in dimensions]
    whole = torch.empty(shape, dtype=parts[0].tensor.dtype)
    for part in parts:
        view = whole
        for d in dimensions:
            view = view.narrow(d, part.offsets[d], part.tensor.size(d))
        view.copy_(part.tensor)
    return [whole]
