# SPDX-License-Identifier: Apache-2.0
"""Set-up of the frozen base for a training, from the `model` section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.samples import Sample
from nemo_launcher.families.base import Base
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.compilation import set_torch_compile
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.fused_check import uses_fused
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.row_costs import RowCosts
from nemo_launcher.training.base_dropout import set_base_dropout
from nemo_launcher.training.calibration import calibrated_layout
from nemo_launcher.training.row_memory import fills_rows
from nemo_launcher.training.workers import layout_for


def training_layout(
    base: Base, settings: Ia3Model, method: str, tokens: float, row_costs: Mapping[str, object] | None
) -> Layout:
    """Set up the base; return the layout of the micro-batches. All ranks must call this.

    method: the adapter method. tokens: about how many tokens the samples of the whole training have. row_costs: those
    of the training that is resumed, so that it continues with the same rows; None to measure them.
    """
    layout = _set_up(base, settings)
    if settings.nemo_compat or settings.data.layout == "fixed":
        return layout
    known = RowCosts.from_dict(row_costs)
    if known is not None and _hold_here(known, base, layout):
        return layout.calibrated(known)
    return calibrated_layout(base, layout, method, tokens)


def _hold_here(costs: RowCosts, base: Base, layout: Layout) -> bool:
    """Return whether known costs of rows hold on this kind of device, perhaps measured on another machine.

    All ranks must call this and get the same answer.
    """
    if costs.fitting_tokens is not None:
        return all(fills for _, fills in ranks.gather_objects(fills_rows(base)))
    return not costs.is_calibrated or (base.device.type == "cpu" and costs.has(layout.choices[0].threads))


def tokens_to_train(samples: Sequence[Sample], global_batch_size: int, max_steps: int, max_epochs: int | None) -> float:
    """Return about how many tokens a training processes. max_steps, max_epochs: Lightning's; -1 for no limit."""
    known = [len(samples) * max_epochs] if max_epochs is not None and max_epochs >= 0 else []
    passes = min([*known, max_steps * global_batch_size] if max_steps >= 0 else known, default=len(samples))
    some = [samples[place].num_input_tokens for place in range(min(len(samples), 64))]
    return passes * sum(some) / max(1, len(some))


def _set_up(base: Base, settings: Ia3Model) -> Layout:
    """Apply dropout, recomputation, attention backend and compilation; return the layout by the fixed rules.

    All ranks must call this and get the same layout.
    """
    stacks = list(base.family.stacks(base.model, base.shape))
    for stack in stacks:
        recompute_layers(
            stack.layers,
            settings.activations_checkpoint_granularity,
            settings.activations_checkpoint_method,
            settings.activations_checkpoint_num_layers,
        )
    set_attention_backend(base.model, settings.attention_backend)
    set_torch_compile(base.model, settings.torch_compile)
    set_fused(base.model, uses_fused(settings.fused_kernels, "model.fused_kernels", base.device, base.dtype))
    size = settings.micro_batch_size
    if not settings.nemo_compat:
        # Rank 0's number of threads decides: replicas that cut a batch differently would repeat or lose samples.
        return ranks.broadcast_from_rank_zero(lambda: layout_for(size, base.device, base.dtype, len(stacks)))
    set_base_dropout(base.model, base.config)
    return Layout.one_after_the_other(size)  # the loss depends on the micro-batches, dropout on their order
