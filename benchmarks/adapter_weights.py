# SPDX-License-Identifier: Apache-2.0
"""Equal adapter weights on both sides of a benchmark, so that gradients can be compared.

Each side names its adapters by place, `[encoder.|decoder.]<layer>.[cross.]<kind>`, and their parts. LoRA's update of
several projections is one part whose rows are those of the projections, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor, nn

STARTS_AT_ONE = ("scale", "norm_weight")  # the other parts are near zero


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that both sides have, in one or several parameters."""

    parameters: Sequence[nn.Parameter]
    """The parameters that hold its rows, one after the other."""
    copies: bool = False
    """Whether each parameter holds all of it instead: its gradient is the sum of theirs."""
    order: Tensor | None = None
    """Where a single parameter has its rows in another order: the row of the part in each of its rows."""

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        first = self.parameters[0].shape
        rows = first[0] if self.copies else sum(parameter.shape[0] for parameter in self.parameters)
        return torch.Size([rows, *first[1:]])

    def assign(self, value: Tensor) -> None:
        """Set the tensor."""
        if self.order is not None:
            value = value[self.order]
        sizes = [parameter.shape[0] for parameter in self.parameters]
        values = [value] * len(sizes) if self.copies else value.split(sizes)
        with torch.no_grad():
            for parameter, own in zip(self.parameters, values, strict=True):
                parameter.copy_(own)

    def gradient(self) -> Tensor:
        """Return the gradient of the tensor."""
        gradients = [_gradient(parameter) for parameter in self.parameters]
        if self.copies:
            return torch.stack(gradients).sum(0)
        whole = torch.cat(gradients)
        return whole if self.order is None else whole[self.order.argsort()]


Places = Iterable[tuple[str, Mapping[str, Part]]]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.float()


def whole(parts: Mapping[str, nn.Parameter]) -> dict[str, Part]:
    """Return parts that are one parameter each."""
    return {name: Part([parameter]) for name, parameter in parts.items()}


def rows_by_group(sizes: Sequence[int], groups: int) -> Tensor:
    """Return the order of the rows of several matrices that are stored group by group, [sum(sizes)].

    Each group holds its share of the first matrix, then of the second, and so on.
    """
    rows = torch.arange(sum(sizes)).split(list(sizes))
    return torch.cat([matrix.view(groups, -1) for matrix in rows], dim=1).flatten()


def start_alike(places: Places) -> None:
    """Set each part to random weights, near one for scales and near zero for the rest, that depend on its place."""
    for place, parts in places:
        generator = torch.Generator().manual_seed(crc32(place.encode()))
        for name in sorted(parts):
            value = 0.02 * torch.randn(parts[name].shape, generator=generator)
            parts[name].assign(value + (name in STARTS_AT_ONE))


def gradients_of(places: Places) -> dict[str, Tensor]:
    """Return the gradients by place and part, flat: PEFT stores vectors as matrices."""
    return {f"{place}.{name}": part.gradient().flatten() for place, parts in places for name, part in parts.items()}


def largest_difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sides' gradients, relative to the largest gradient."""
    assert mine.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    return max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) / largest
