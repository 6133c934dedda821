# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's configuration with the settings of megatron.variation, which reaches every module of a model."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_launcher.megatron.variation import PLAIN, Variation


@dataclass
class LayerConfig(TransformerConfig):
    """The configuration of a frozen model."""

    variation: Variation = PLAIN
    """What its layers compute beyond Megatron-core's."""
