# SPDX-License-Identifier: Apache-2.0
"""Set-up of the frozen base for a training, from the `model` section."""

from __future__ import annotations

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import Base
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.compilation import set_torch_compile
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.training.base_dropout import set_base_dropout
from nemo_launcher.training.workers import layout_for


def set_up_base(base: Base, settings: Ia3Model) -> Layout:
    """Apply dropout, recomputation, attention backend and compilation; return the layout of the micro-batches."""
    for stack in base.family.stacks(base.model, base.shape):
        recompute_layers(
            stack.layers,
            settings.activations_checkpoint_granularity,
            settings.activations_checkpoint_method,
            settings.activations_checkpoint_num_layers,
        )
    set_attention_backend(base.model, settings.attention_backend)
    set_torch_compile(base.model, settings.torch_compile)
    size = settings.micro_batch_size
    if not settings.nemo_compat:
        return layout_for(size, base.device, base.dtype)
    set_base_dropout(base.model, base.config)
    return Layout.one_after_the_other(size)  # the loss depends on the micro-batches, dropout on their order
