# SPDX-License-Identifier: Apache-2.0
"""The table (families.hf_table) of a declared architecture (checkpoint.architectures)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Layout, Source
from nemo_launcher.families.hf_table import Module, StackTable, Table

_STACK = "decoder"
_QKV = (Layout.QKV, Layout.QKV_ROWS, Layout.QKV_COLUMNS, Layout.QKV_BY_GROUP)
_UNUSED_ROWS = {Layout.WITHOUT_TWO_ROWS: 2}


def table_of(architecture: Architecture, has: Callable[[str], bool]) -> Table:
    """Return the modules of a model. has: whether the model has a weight of this name, for alternative sources."""
    outside, inside, before = [], [], ""
    for ours, first in architecture.weights.items():
        source = _present(first, has)
        if source is None:
            continue
        if "*" not in ours:
            outside.append(_module(ours, source.names, source.layout))
            continue
        before = source.names[0].partition("*.")[0]
        for number, theirs in _numbered(source, has):
            names = tuple(name.partition("*.")[2] for name in theirs)
            inside.append(_module(ours.partition("*.")[2].replace("@", str(number)), names, source.layout))
    return Table(tuple(outside), (StackTable(_STACK, f"{before}{{}}.", tuple(inside)),))


def _present(source: Source | None, has: Callable[[str], bool]) -> Source | None:
    """Return the first of the alternative sources that a model has."""
    while source is not None and not all(has(_first(name)) for name in source.names):
        source = source.otherwise
    return source


def _first(name: str, number: int = 0) -> str:
    """Return the weight of this name in the first layer, of one of its heads or experts."""
    return f"{name.replace('*', '0').replace('@', str(number))}.weight"


def _numbered(source: Source, has: Callable[[str], bool]) -> Iterator[tuple[int, list[str]]]:
    """Yield the names of each of our modules: one of each expert (@), or one of all heads (@)."""
    if "@" not in source.names[0]:
        yield 0, list(source.names)
        return
    numbers = list(itertools.takewhile(lambda number: has(_first(source.names[0], number)), itertools.count()))
    if source.layout is Layout.EACH_HEAD:
        yield 0, [name.replace("@", str(number)) for number in numbers for name in source.names]
        return
    for number in numbers:
        yield number, [name.replace("@", str(number)) for name in source.names]


def _module(ours: str, theirs: tuple[str, ...], layout: Layout) -> Module:
    return Module(
        ours,
        theirs,
        heads="qkv" if layout in _QKV else "",
        transposed=layout in (Layout.TRANSPOSED, Layout.QKV_COLUMNS),
        by_group=layout is Layout.QKV_BY_GROUP,
        unused_rows=_UNUSED_ROWS.get(layout, 0),
    )
