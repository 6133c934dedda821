# SPDX-License-Identifier: Apache-2.0
"""Tables of the modules that hold the same weights in a Hugging Face model and here.

One table carries weights, adapters and names in both directions. A difference is at most an order of rows, a
concatenation of several modules, and a transposition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from nemo_launcher.megatron.sizes import LayerSizes

Widths = Mapping[str, Callable[[LayerSizes], int]]
_HEAD_ROWS: Widths = {
    "q": lambda sizes: sizes.num_attention_heads * sizes.kv_channels,
    "k": lambda sizes: sizes.num_query_groups * sizes.kv_channels,
    "v": lambda sizes: sizes.num_query_groups * sizes.kv_channels,
}


@dataclass(frozen=True, slots=True)
class Module:
    """One of our linear layers, norms or embeddings, and the modules of Hugging Face that it consists of."""

    ours: str
    """Our name, within a layer or, outside the stacks, in the model."""
    theirs: tuple[str, ...]
    """The names of Hugging Face, whose rows are concatenated in this order."""
    heads: str = ""
    """The concatenated rows: `qkv` are all queries, then all keys, then all values. Here they alternate by group:
    [groups, heads / groups + 2, head_dim]."""
    transposed: bool = False
    """Whether Hugging Face stores [in, out], as in GPT-2's Conv1D."""
    by_group: bool = False
    """Whether the rows of `heads` alternate by group there too."""
    unused_rows: int = 0
    """The number of rows before ours that no text uses, as in OPT's positions."""

    def join(self, parts: Sequence[Tensor], sizes: LayerSizes) -> Tensor:
        """Return our weight or bias, for those of Hugging Face."""
        rows = [part.t() if self.transposed and part.dim() == 2 else part for part in parts]
        return self.whole_of(rows, sizes)

    def split(self, whole: Tensor, sizes: LayerSizes) -> list[Tensor]:
        """Return the weights or biases of Hugging Face, for ours."""
        return [part.t() if self.transposed and part.dim() == 2 else part for part in self.rows_of(whole, sizes)]

    def rows_of(self, whole: Tensor, sizes: LayerSizes) -> list[Tensor]:
        """Return the rows of each module of Hugging Face, for any tensor with a row for each of our outputs."""
        theirs = whole[torch.argsort(self._order(sizes))] if self._is_reordered else whole
        if self.unused_rows:
            theirs = torch.cat((theirs.new_zeros(self.unused_rows, *theirs.shape[1:]), theirs))
        return list(theirs.split(self.widths(sizes, whole.size(0))))

    def whole_of(self, rows: Sequence[Tensor], sizes: LayerSizes) -> Tensor:
        """Return the inverse of `rows_of`."""
        joined = rows[0] if len(rows) == 1 else torch.cat(list(rows))
        return joined[self._order(sizes)] if self._is_reordered else joined[self.unused_rows :]

    @property
    def _is_reordered(self) -> bool:
        return bool(self.heads) and not self.by_group

    def widths(self, sizes: LayerSizes, rows: int) -> list[int]:
        """Return the number of rows of each module of Hugging Face; rows: of ours."""
        if len(self.theirs) == len(self.heads):
            return [_HEAD_ROWS[letter](sizes) for letter in self.heads]
        return [rows // len(self.theirs) + self.unused_rows] * len(self.theirs)

    def head_rows(self, letter: str, sizes: LayerSizes) -> Tensor:
        """Return the numbers of the rows of queries, keys or values in the concatenated rows of Hugging Face, [n]."""
        start = sum(_HEAD_ROWS[earlier](sizes) for earlier in self.heads[: self.heads.index(letter)])
        rows = torch.arange(start, start + _HEAD_ROWS[letter](sizes))
        return torch.argsort(self._order(sizes))[rows] if self.by_group else rows

    def all_rows(self, sizes: LayerSizes) -> int:
        """Return the number of rows of `heads`."""
        return sum(_HEAD_ROWS[letter](sizes) for letter in self.heads)

    def _order(self, sizes: LayerSizes) -> Tensor:
        """Return the row of Hugging Face that each of our rows is."""
        ends = torch.tensor([0, *(_HEAD_ROWS[letter](sizes) for letter in self.heads)]).cumsum(0).tolist()
        by_group = [torch.arange(*bounds).view(sizes.num_query_groups, -1) for bounds in pairwise(ends)]
        return torch.cat(by_group, dim=1).flatten()


@dataclass(frozen=True, slots=True)
class StackTable:
    """The modules of a stack's layers."""

    name: str
    """The stack's name in our model."""
    theirs: str
    """What precedes the names of Hugging Face, with {} for the layer's number."""
    modules: tuple[Module, ...]
    """The modules of each layer."""

    def find(self, ours: str) -> Module | None:
        """Return the entry with this name of ours, or None."""
        return next((module for module in self.modules if module.ours == ours), None)

    def attending(self, owner: str) -> Module | None:
        """Return the entry with the keys and values of our attention `owner`, or None."""
        found = (module for module in self.modules if module.ours.startswith(f"{owner}.") and "k" in module.heads)
        return next(found, None)

    def names(self, layer: int, module: Module) -> list[str]:
        """Return the names of Hugging Face of a module in a layer."""
        return [self.theirs.format(layer) + name for name in module.theirs]


@dataclass(frozen=True, slots=True)
class Table:
    """All modules of a model."""

    outside: tuple[Module, ...]
    """Those outside the stacks, with complete names."""
    stacks: tuple[StackTable, ...] = field(default=())
    """Those of the stacks."""

    def stack(self, name: str) -> StackTable:
        """Return the table of a stack."""
        return next(stack for stack in self.stacks if stack.name == name)

    def entries(self, stacks: Mapping[str, LayerSizes]) -> Iterator[Entry]:
        """Yield each module of a complete model with these stacks, in the order of its computation."""
        any_sizes = next(iter(stacks.values()))
        for module in self.outside:
            yield Entry(module, module.ours, list(module.theirs), any_sizes)
        for stack in self.stacks:
            sizes = stacks[stack.name]
            for layer in range(sizes.num_layers):
                for module in stack.modules:
                    ours = f"{stack.name}.layers.{layer}.{module.ours}"
                    yield Entry(module, ours, stack.names(layer, module), sizes, stack.name, layer)


@dataclass(frozen=True, slots=True)
class Entry:
    """A module of a model, with complete names."""

    module: Module
    """Its entry in the table."""
    ours: str
    """Our name."""
    theirs: list[str]
    """The names of Hugging Face."""
    sizes: LayerSizes
    """The sizes of its layer."""
    stack: str = ""
    """The stack that it is in; empty outside the stacks."""
    layer: int = 0
    """The number of its layer, from 0."""
