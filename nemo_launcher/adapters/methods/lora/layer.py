# SPDX-License-Identifier: Apache-2.0
"""LoRA: a low-rank update beside a frozen projection, W x + (alpha / r) B A x.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), section 4.1, as
implemented in NeMo 1.23's ParallelLinearAdapter with the identity as its activation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from nemo_launcher.adapters import splitting
from nemo_launcher.adapters.linear import INIT_METHODS, linear
from nemo_launcher.adapters.methods.lora.config import LoraSettings
from nemo_launcher.adapters.settings import Split
from nemo_launcher.adapters.sites import Site
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.seeded_dropout import SeededDropout
from nemo_launcher.megatron.sizes import LayerSizes


class LoraAdapter(nn.Module):
    """linear_in, linear_out and a scale; the result is added to the projection's output.

    Weights: linear_in [r, in], linear_out [out, r]. They are fp32 for any base and cast to the dtype of the
    activations. Tensor-parallel ranks split both by rows beside a column-parallel projection; beside a row-parallel one
    they split linear_in by columns and linear_out by rows.
    """

    sequence_parallel = False

    def __init__(self, settings: LoraSettings, site: Site, sizes: LayerSizes) -> None:
        super().__init__()
        self.site, self.scale, self.gated = site, settings.scale, sizes.gated
        self.dropout, self.drops_input = SeededDropout(settings.adapter_dropout), settings.dropout_position == "pre"
        self.width = site.takes.of(sizes) if self.drops_input else site.gives.of(sizes)  # of dropout's input, unsplit
        # Initialized before splitting, so that the weights do not depend on the number of ranks.
        whole_in = torch.empty(settings.adapter_dim, site.takes.of(sizes))
        whole_out = torch.empty(site.gives.of(sizes), settings.adapter_dim)
        INIT_METHODS[settings.column_init_method](whole_in)
        INIT_METHODS[settings.row_init_method](whole_out)
        splits = next(placement.splits for placement in settings.placements() if placement.site is site)
        self.linear_in = linear(splitting.part(whole_in, splits["linear_in.weight"], gated=sizes.gated))
        self.linear_out = linear(splitting.part(whole_out, splits["linear_out.weight"], gated=sizes.gated))

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the update, in the shape of output, [s, b, out]; x: the projection's input, [s, b, in]."""
        # The scale multiplies the r hidden values, which are fewer than the outputs.
        first, second = self.linear_in.weight.to(x.dtype), self.linear_out.weight.to(x.dtype)
        if self.site.takes.is_split:
            hidden = reduce_from_tensor_model_parallel_region(F.linear(self._apply_dropout(x, on_input=True), first))
            update = F.linear(copy_to_tensor_model_parallel_region(hidden * self.scale), second)
            update = self._apply_dropout(gather_from_tensor_model_parallel_region(update), on_input=False)
            return scatter_to_sequence_parallel_region(update) if self.sequence_parallel else update
        gather = (
            gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
        )
        hidden = F.linear(self._apply_dropout(gather(x), on_input=True), first) * self.scale
        # the gradient of the gathered tensor is summed over the ranks, each of which uses all of it
        hidden = copy_to_tensor_model_parallel_region(gather_from_tensor_model_parallel_region(hidden))
        return self._apply_dropout(F.linear(hidden, second), on_input=False)

    def _apply_dropout(self, x: Tensor, *, on_input: bool) -> Tensor:
        """Apply dropout to x if `on_input` matches dropout_position; ranks that share x use the same mask."""
        if on_input != self.drops_input or not self.training or self.dropout.rate == 0.0:
            return x
        width = self.site.takes if on_input else self.site.gives
        if not width.is_split or parallel.tensor_size() == 1:
            dropped: Tensor = self.dropout(x)
            return dropped
        mask = self.dropout(x.new_ones(*x.shape[:-1], self.width))
        return x * splitting.part(mask, Split(-1, width.has_gate), gated=self.gated)


def lora_adapter(settings: LoraSettings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter for a site."""
    return LoraAdapter(settings, site, sizes)
