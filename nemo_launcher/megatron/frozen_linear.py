# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's parallel linear layers for frozen weights.

Megatron-core 0.16 multiplies a gradient [s, b, out] from attention by the weight as it is. If its strides do not fold
into a matrix, torch falls back to `s` products of one row each, which take more time than all other operations on a
CPU. Here both directions are one matrix product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.files.mapped import release_pages
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.autograd import Context
from nemo_launcher.megatron.packed_weight import PackedWeight, PacksWeight, plain_product

_packing = threading.Lock()


class _LinearContext(Context):
    weight: Tensor | PackedWeight
    group: dist.ProcessGroup | None


class _FrozenLinear(torch.autograd.Function):
    """x @ weight.T + bias, without gradients for weight and bias."""

    @staticmethod
    def forward(
        ctx: _LinearContext,
        x: Tensor,
        weight: Tensor | PackedWeight,
        bias: Tensor | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """Return [..., out].

        x: [..., in]; weight: [out, in]; group: the group to sum the gradient of x over, or None.
        """
        ctx.weight, ctx.group = weight, group
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: _LinearContext, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x; grad: [..., out]."""
        rows, weight = grad.reshape(-1, grad.size(-1)), ctx.weight
        result = weight.backward(rows) if isinstance(weight, PackedWeight) else plain_product(rows, weight.t(), None)
        result = result.view(*grad.shape[:-1], -1)
        if ctx.group is not None:
            dist.all_reduce(result, group=ctx.group)
        return result, None, None, None


def _product(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.size(-1))
    output = weight.forward(rows, bias) if isinstance(weight, PackedWeight) else plain_product(rows, weight, bias)
    return output.view(*x.shape[:-1], -1)


class _Frozen(PacksWeight):
    """The product of the column- and row-parallel layers.

    packs_weight: the first use replaces the weight by `packed`, in the layout of the matrix product, and leaves
    `weight` on the meta device, without values (megatron.packed_weight); None: never.
    """

    packed: PackedWeight | None = None
    bias: Tensor | None
    skip_bias_add: bool

    @cached_property
    def is_whole(self) -> bool:
        """Whether this rank has the complete weight."""
        return parallel.tensor_size() == 1

    def forward(self, input_: Tensor, weight: Tensor | None = None, **options: object) -> tuple[Tensor, Tensor | None]:
        """Return [..., out], and the bias if the caller adds it; input_: [..., in]; weight: replaces the layer's own.

        A complete layer bypasses Megatron-core: on short rows, as in generation, its checks for parallelism take as
        long as the product.
        """
        if not self.is_whole:
            given = {} if weight is None else {"weight": weight}
            output: tuple[Tensor, Tensor | None] = super().forward(input_, **given, **options)  # type: ignore[misc]
            return output
        bias, added_later = (None, self.bias) if self.skip_bias_add else (self.bias, None)
        return self._multiply(input_, self.weight if weight is None else weight, bias, None), added_later

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup | None) -> Tensor:
        used = self._used_weight(weight)
        if not torch.is_grad_enabled():
            return _product(x, used, bias)
        output: Tensor = _FrozenLinear.apply(x, used, bias, group)
        return output

    def _used_weight(self, weight: Tensor) -> Tensor | PackedWeight:
        if not self.packs_weight:
            return weight
        if self.packed is None:
            with _packing:  # micro-batches run concurrently
                if self.packed is None:
                    self.packed = PackedWeight(self.weight)
                    release_pages(self.weight.data_ptr(), self.weight.nbytes)  # not needed any more
                    self.weight = nn.Parameter(self.weight.to("meta"), requires_grad=False)
        return self.packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> object:
        """Move or cast everything except a packed weight, whose dtype and device are fixed."""
        parameters: dict[str, nn.Parameter | None] = self._parameters  # type: ignore[attr-defined]
        weight = parameters.pop("weight") if self.packed is not None else None
        super()._apply(fn, recurse)  # type: ignore[misc]
        if weight is not None:
            parameters["weight"] = weight
        return self

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: dist.ProcessGroup | None = None,
        **_: object,
    ) -> Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True)
        return self._multiply(input, weight, bias, tp_group if allreduce_dgrad else None)


class FrozenColumnParallelLinear(_Frozen, ColumnParallelLinear):
    """A linear layer with weight [out / ranks, in] on each tensor-parallel rank."""


class FrozenRowParallelLinear(_Frozen, RowParallelLinear):
    """A linear layer with weight [out, in / ranks] on each tensor-parallel rank."""


class FrozenHead(FrozenColumnParallelLinear):
    """The output layer. Its weight may be the embedding, which is also indexed by row, so it is never packed.

    With sequence parallelism it still takes all tokens (megatron.sequence): only some of them have logits.
    """

    packs_weight = None
    sequence_parallel: bool

    def __init__(self, hidden_size: int, rows: int, *, config: TransformerConfig, bias: bool, is_tied: bool) -> None:
        """Create the layer; rows: padded vocabulary size; is_tied: each call passes the embedding as the weight."""
        super().__init__(
            hidden_size,
            rows,
            config=config,
            init_method=config.init_method,
            bias=bias,
            gather_output=True,
            skip_weight_param_allocation=is_tied,
        )
        if self.sequence_parallel:
            self.sequence_parallel, self.allreduce_dgrad = False, True
