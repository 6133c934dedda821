# SPDX-License-Identifier: Apache-2.0
"""Steps on the meta device, which stands for a GPU on a machine without one.

Meta tensors have shapes and no values, so whatever would make a GPU wait for the host raises an error: item, tolist,
nonzero, unique, a copy to main memory.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "detach", "lift_fresh"),
    )
)
_COPIES = ("aten::_to_copy", "aten::copy_")


class Recorder(TorchDispatchMode):
    """Counts the operations that launch a kernel on a GPU and the copies to it, and notes operations of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        """The number of calls of each operation that writes memory on the device."""
        self.copies = 0
        """The number of copies to the device."""
        self.mixed: collections.Counter[str] = collections.Counter()
        """The number of other operations with tensors of two devices, 0-dimensional ones in main memory aside."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, torch.Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        name = func._schema.name
        if all(tensor.device.type == "cpu" for tensor in given + made):
            return result
        devices = {tensor.device.type for tensor in given if tensor.dim() or tensor.device == META}
        if name in _COPIES:
            self.copies += len({tensor.device.type for tensor in given + made}) > 1
        elif len(devices) > 1:
            self.mixed[name] += 1
        if name not in _NO_KERNEL and not _is_view(func, name):
            self.kernels[name] += 1
        return result

    def total(self) -> int:
        """Return the number of kernels."""
        return self.kernels.total()


def _is_view(func: Any, name: str) -> bool:
    returns = func._schema.returns
    aliases = [each.alias_info for each in returns]
    return bool(returns) and name not in _COPIES and all(a is not None and not a.is_write for a in aliases)


def kernels_a_layer(run: Callable[[int], Recorder], layers: Sequence[int] = (2, 4)) -> float:
    """Return how many kernels each further layer adds. run: runs a step of a model with so many layers."""
    few, many = layers
    return (run(many).total() - run(few).total()) / (many - few)
