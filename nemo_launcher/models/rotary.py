"""Rotary positions: what a checkpoint's `model_config.yaml` says of them, and the angles of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.errors import Problem


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's way to longer contexts: slow frequencies are divided by `scale_factor`, fast ones stay.

    A frequency is slow when it turns less than `low_freq_factor` times in the `old_context_len` tokens that the model
    was first trained with, and fast when it turns `high_freq_factor` times or more. The names are those of NeMo 2.x's
    Llama31Config; NeMo 1.x's `scale_positional_embedding: True` has no more than a `scale_factor`.
    """

    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: float = 8192.0

    def apply(self, frequencies: Tensor) -> Tensor:
        """Return the scaled frequencies, [rotary_dim / 2] radians a token."""
        turns = self.old_context_len * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.scale_factor, frequencies, kept.clamp(0.0, 1.0))


_SCALING_KEYS = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")


@dataclass(frozen=True, slots=True)
class Rotary:
    """How queries and keys are turned.

    percentage: the share of a head's dimensions that is turned. base: of the frequencies. interpolation_factor:
    positions are divided by it.
    """

    percentage: float
    base: float
    interpolation_factor: float
    scaling: Llama3Scaling | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rotary:
        """Read a configuration without `problems`."""
        scaling = Llama3Scaling(**{key: float(config[key]) for key in _SCALING_KEYS if config.get(key) is not None})
        return cls(
            percentage=float(config.get("rotary_percentage") or 1.0),
            base=float(config.get("rotary_base") or 10000.0),
            interpolation_factor=float(config.get("seq_len_interpolation_factor") or 1.0),
            scaling=scaling if config.get("scale_positional_embedding") else None,
        )

    def angles(self, position_ids: Tensor, frequencies: Tensor) -> Tensor:
        """Return the angles of tokens, [s, b, 1, rotary_dim].

        position_ids: [b, s]; frequencies: [rotary_dim / 2], not scaled. Megatron-core's own table counts from 0 along
        the row, and asks for CUDA.
        """
        frequencies = frequencies.to(position_ids.device)
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies)
        half = position_ids.t()[..., None] / self.interpolation_factor * frequencies  # [s, b, rotary_dim / 2]
        return torch.cat((half, half), dim=-1)[:, :, None, :]


def problems(config: Mapping[str, Any], source: str) -> list[Problem]:
    """Return what does not describe rotary positions; `source`: the archive's name, for messages."""
    found = []
    for key in ("rotary_percentage", "rotary_base", "seq_len_interpolation_factor", *_SCALING_KEYS):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not a number above 0"))
    if found or not config.get("scale_positional_embedding"):
        return found
    scaling = Rotary.from_config(config).scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        what = f"{scaling.low_freq_factor:g} is not below high_freq_factor {scaling.high_freq_factor:g}"
        found.append(Problem(f"{source}: low_freq_factor", what))
    return found
