# SPDX-License-Identifier: Apache-2.0
"""The table (families.hf_table) of a declared architecture (checkpoint.architectures)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

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
        names = [name for several in source.names for name in _of_heads(several, has)]
        theirs = tuple(name.partition("*.")[2] for name in names)
        inside.append(_module(ours.partition("*.")[2], theirs, source.layout))
    return Table(tuple(outside), (StackTable(_STACK, f"{before}{{}}.", tuple(inside)),))


def _present(source: Source | None, has: Callable[[str], bool]) -> Source | None:
    """Return the first of the alternative sources that a model has."""
    while source is not None and not all(has(_first(name)) for name in source.names):
        source = source.otherwise
    return source


def _first(name: str, head: int = 0) -> str:
    """Return the weight of this name in the first layer."""
    return f"{name.replace('*', '0').replace('@', str(head))}.weight"


def _of_heads(name: str, has: Callable[[str], bool]) -> list[str]:
    """Return the names of all heads (@); without @, the name alone."""
    if "@" not in name:
        return [name]
    heads = itertools.takewhile(lambda head: has(_first(name, head)), itertools.count())
    return [name.replace("@", str(head)) for head in heads]


def _module(ours: str, theirs: tuple[str, ...], layout: Layout) -> Module:
    return Module(
        ours,
        theirs,
        heads="qkv" if layout in _QKV else "",
        transposed=layout in (Layout.TRANSPOSED, Layout.QKV_COLUMNS),
        by_group=layout is Layout.QKV_BY_GROUP,
        unused_rows=_UNUSED_ROWS.get(layout, 0),
    )
