# SPDX-License-Identifier: Apache-2.0
"""Steps on the meta device, which stands for a GPU on a machine without one.

Meta tensors have shapes and no values, so whatever would make a GPU wait for the host raises an error: item, tolist,
nonzero, unique, a copy to main memory. Attention kernels, which torch takes apart on this device, are replaced by one
operation each.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_launcher.megatron import attention, flex_attention
from nemo_launcher.megatron.fused import KERNELS

META = torch.device("meta")
NAMESPACE = "nemo_launcher::"
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_unsafe_view", "detach", "lift_fresh"),
    )
)
_COPIES = ("aten::_to_copy", "aten::copy_")
_PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm"))
# Operations of torch that launch several kernels: some sort indices first, some sum in two passes.
_SEVERAL = {
    "aten::embedding_dense_backward": 5,
    "aten::index_put": 6,
    "aten::_index_put_impl_": 6,
    "aten::native_layer_norm_backward": 2,
    "aten::select_backward": 2,
    "aten::slice_backward": 2,
}
_TENSORS_A_LAUNCH = 64  # torch's operations on lists of tensors take at least so many in one kernel
_ATTENTION = {"sdpa": 1, "sdpa_backward": 3, "flex": 1, "flex_backward": 3}


class Recorder(TorchDispatchMode):
    """Counts the operations that launch a kernel on a GPU and the copies to it, and notes operations of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        """The number of kernels of each operation that writes memory on the device."""
        self.traffic = 0
        """The bytes that operations other than matrix products and attention read and write."""
        self.flops = 0
        """The floating-point operations of matrix products."""
        self.copies = 0
        """The number of copies to the device."""
        self.blocking = 0
        """The number of those that the host waits for."""
        self.mixed: collections.Counter[str] = collections.Counter()
        """The number of other operations with tensors of two devices, 0-dimensional ones in main memory aside."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        name = func._schema.name
        if all(tensor.device.type == "cpu" for tensor in given + made):
            return result
        devices = {tensor.device.type for tensor in given if tensor.dim() or tensor.device == META}
        if name in _COPIES:
            crosses = len({tensor.device.type for tensor in given + made}) > 1
            self.copies += crosses
            self.blocking += crosses and not _does_not_block(func, args, kwargs or {})
        elif len(devices) > 1:
            self.mixed[name] += 1
        if name not in _NO_KERNEL and not _is_view(func, name):
            self.kernels[name] += _kernels_of(name, len(given))
            if name in _PRODUCTS:
                self.flops += 2 * made[0].numel() * given[-1].size(-2)
            else:
                self.traffic += sum(each.nbytes for each in given + made if each.device == META)
        return result

    def total(self) -> int:
        """Return the number of kernels."""
        return self.kernels.total()


def _does_not_block(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    return bool((dict(zip(names, args, strict=False)) | dict(kwargs)).get("non_blocking"))


def _kernels_of(name: str, tensors: int) -> int:
    """Return the number of kernels of an operation that takes so many tensors."""
    if name.startswith("aten::_foreach_"):
        return -(-tensors // _TENSORS_A_LAUNCH)
    return KERNELS.get(name.removeprefix(NAMESPACE), _SEVERAL.get(name, 1))


def _is_view(func: Any, name: str) -> bool:
    returns = func._schema.returns
    aliases = [each.alias_info for each in returns]
    return bool(returns) and name not in _COPIES and all(a is not None and not a.is_write for a in aliases)


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Record the operations inside, with attention as kernels of a GPU."""
    recorder = Recorder()

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, kind: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            ctx.save_for_backward(query, key, value)
            ctx.kind = kind
            recorder.kernels[kind] += _ATTENTION[kind]
            return _as_a_row(query, value.size(-1))

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
            name = f"{ctx.kind}_backward"
            recorder.kernels[name] += _ATTENTION[name]
            query, key, value = (_as_a_row(each, each.size(-1)) for each in ctx.saved_tensors)
            return None, query, key, value

    def sdpa(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        result: Tensor = Attention.apply("sdpa", query, key, value)
        return result

    def flex(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        result: Tensor = Attention.apply("flex", query, key, value)
        return result

    with (
        patch.object(attention, "scaled_dot_product_attention", sdpa),
        patch.object(flex_attention, "_kernel", lambda: flex),
        patch.object(flex_attention, "_make_mask", lambda *_: None),
        patch.object(torch.nn.utils.clip_grad, "_has_foreach_support", lambda tensors, device: True),
        recorder,
    ):
        yield recorder


def _as_a_row(tensor: Tensor, width: int) -> Tensor:
    """Return an empty tensor, [b, heads, s, width], in the memory order that attention kernels write: [b, s, ...]."""
    batch, heads, tokens, _ = tensor.shape
    return tensor.new_empty(batch, tokens, heads, width).transpose(1, 2)


def kernels_a_layer(run: Callable[[int], Recorder], layers: Sequence[int] = (2, 4)) -> float:
    """Return how many kernels each further layer adds. run: runs a step of a model with so many layers."""
    few, many = layers
    return (run(many).total() - run(few).total()) / (many - few)
