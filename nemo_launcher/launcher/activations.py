# SPDX-License-Identifier: Apache-2.0
"""What a layer keeps of each token for the backward pass, in elements.

The terms follow the layer's parts: megatron.frozen_norm, frozen_linear, frozen_mlp, attention, block_attention and
families.t5.attention. Scores of attention are never kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemo_launcher.adapters.settings import Settings
from nemo_launcher.adapters.sites import FFN_IN, HEADS, KEYS, QKV, Site
from nemo_launcher.megatron.sizes import LayerSizes

_IN_FEED_FORWARD = (Site.MLP_ACTIVATION, Site.MLP_OUTPUT, Site.LINEAR_FC1, Site.LINEAR_FC2)


@dataclass(frozen=True, slots=True)
class Device:
    """How a rank computes."""

    is_gpu: bool
    """Whether it computes on a GPU."""
    width: int
    """Bytes of an element of weights and activations."""
    tensor: int = 1
    """The number of tensor-parallel ranks."""
    pipeline: int = 1
    """The number of pipeline stages."""
    recomputes: bool = False
    """Whether the backward pass recomputes layers from their inputs."""
    recomputed: int | None = None
    """The number of layers of a stage that are recomputed; None for all."""
    packs: bool = True
    """Whether a CPU packs the layers' weights (megatron.packed_weight): not in bf16 without AVX-512."""

    @property
    def ranks(self) -> int:
        """The number of ranks that a model is split over."""
        return self.tensor * self.pipeline

    def recomputed_layers(self, layers: float) -> float:
        """Return how many of a stage's layers are recomputed."""
        if not self.recomputes:
            return 0.0
        return min(layers, math.inf if self.recomputed is None else self.recomputed)


def layer_elements(settings: Settings, sizes: LayerSizes, device: Device, *, is_rotary: bool) -> tuple[float, float]:
    """Return the elements that a layer keeps per token up to attention's output, and those after it."""
    sites = {placement.site for placement in settings.placements()}
    heads, keys, hidden = HEADS.of(sizes), KEYS.of(sizes), sizes.hidden_size
    copies_queries = is_rotary or not device.is_gpu
    attention = heads  # its output
    if copies_queries:
        attention += heads
    if not (copies_queries and {Site.KEY, Site.VALUE} <= sites):  # keys, values or queries are views of it
        attention += QKV.of(sizes)
    if is_rotary and Site.KEY not in sites:
        attention += keys
    before = hidden + attention / device.tensor
    after = hidden + FFN_IN.of(sizes) / device.tensor
    for site in sites:
        if not site.is_cross:
            own = settings.kept_elements(site, sizes) / (device.tensor if site.takes.is_split else 1)
            before, after = (before, after + own) if site in _IN_FEED_FORWARD else (before + own, after)
    return before, after


def cross_elements(settings: Settings, sizes: LayerSizes, device: Device, tokens: float, encoded: float) -> float:
    """Return the elements that cross-attention keeps in a layer. tokens, encoded: of the decoder and the encoder."""
    sites = {placement.site for placement in settings.placements() if placement.site.is_cross}
    elements = tokens * (sizes.hidden_size + 2 * HEADS.of(sizes) / device.tensor)
    if Site.CROSS_KEY not in sites:
        elements += encoded * 2 * KEYS.of(sizes) / device.tensor
    for site in sites:
        of_encoder = site in (Site.CROSS_KEY, Site.CROSS_VALUE, Site.CROSS_LINEAR_KV)
        own = settings.kept_elements(site, sizes) / (device.tensor if site.takes.is_split else 1)
        elements += own * (encoded if of_encoder else tokens)
    return elements


def working_elements(sizes: LayerSizes, device: Device) -> float:
    """Return the elements per token that the backward pass of a feed-forward allocates (megatron.frozen_mlp)."""
    return (FFN_IN.of(sizes) + 3 * sizes.ffn_hidden_size) / device.tensor
