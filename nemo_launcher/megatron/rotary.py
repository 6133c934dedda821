# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: settings from a checkpoint's `model_config.yaml`, angles, and their application."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.errors import Problem
from nemo_launcher.files.values import Section, number
from nemo_launcher.megatron.autograd import Context


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's extension to longer contexts: low frequencies are divided by `scale_factor`, high ones are kept.

    A frequency is low if it makes fewer than `low_freq_factor` turns in `old_context_len` tokens, and high if it makes
    at least `high_freq_factor` turns. The names are those of Llama31Config in NeMo 2.x; `scale_positional_embedding:
    True` of NeMo 1.x has only a `scale_factor`.
    """

    scale_factor: float = 8.0
    """The divisor of low frequencies."""
    low_freq_factor: float = 1.0
    """The number of turns below which a frequency is low."""
    high_freq_factor: float = 4.0
    """The number of turns from which a frequency is high."""
    old_context_len: float = 8192.0
    """The context length of the model's original training, in tokens."""

    def apply(self, frequencies: Tensor) -> Tensor:
        """Return the scaled frequencies, [rotary_dim / 2], in radians per token."""
        turns = self.old_context_len * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.scale_factor, frequencies, kept.clamp(0.0, 1.0))


_SCALING_KEYS = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Settings of rotary positions."""

    percentage: float
    """The fraction of a head's dimensions that are rotated."""
    base: float
    """The base of the frequencies."""
    interpolation_factor: float
    """The divisor of positions."""
    scaling: Llama3Scaling | None
    """Llama 3's scaling of the frequencies, or None."""

    @classmethod
    def from_config(cls, config: Section) -> Rotary:
        """Return the settings in a configuration that has no `problems`."""
        scaling = Llama3Scaling(**{key: value for key in _SCALING_KEYS if (value := number(config, key)) is not None})
        return cls(
            percentage=number(config, "rotary_percentage") or 1.0,
            base=number(config, "rotary_base") or 10000.0,
            interpolation_factor=number(config, "seq_len_interpolation_factor") or 1.0,
            scaling=scaling if config.get("scale_positional_embedding") else None,
        )

    def angles(self, position_ids: Tensor, frequencies: Tensor) -> Tensor:
        """Return the angles of tokens, [s, b, 1, rotary_dim].

        position_ids: [b, s]; frequencies: [rotary_dim / 2], not scaled. Megatron-core's own table counts from 0 along
        the row and requires CUDA.
        """
        frequencies = frequencies.to(position_ids.device)
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies)
        half = position_ids.t()[..., None] / self.interpolation_factor * frequencies  # [s, b, rotary_dim / 2]
        return torch.cat((half, half), dim=-1)[:, :, None, :]


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of a row's queries and keys, shared by all layers."""

    cos: Tensor
    """Cosine of the angles, [s, b, 1, rotary_dim]."""
    sin: Tensor
    """Sine of the angles, [s, b, 1, rotary_dim], negated in its first half."""

    @classmethod
    def from_angles(cls, angles: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation by `angles`, [s, b, 1, rotary_dim], whose halves are equal, in `dtype`."""
        sin = angles.sin()
        sin.narrow(-1, 0, angles.size(-1) // 2).neg_()
        return cls(angles.cos().to(dtype), sin.to(dtype))

    def apply_rotary(self, tokens: Tensor) -> Tensor:
        """Return queries or keys, [s, b, heads, head_dim], rotated in their first rotary_dim dimensions.

        Source: Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34, with GPT-NeoX's order of dimensions.
        """
        rotated: Tensor = _ApplyRotary.apply(tokens, self.cos, self.sin)
        return rotated


class _ApplyRotary(torch.autograd.Function):
    """The autograd function of Rotation.apply_rotary; its gradient is the inverse rotation."""

    @staticmethod
    def forward(ctx: Context, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the rotated tokens, [s, b, heads, head_dim]."""
        ctx.save_for_backward(cos, sin)
        return _rotate(tokens, cos, sin, 1)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the tokens; grad: [s, b, heads, head_dim]."""
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    width = cos.size(-1)
    part = tokens[..., :width]
    rotated = (part * cos).addcmul_(part.roll(width // 2, -1), sin, value=direction)
    return rotated if width == tokens.size(-1) else torch.cat((rotated, tokens[..., width:]), -1)


def problems(config: Mapping[str, object], source: str) -> list[Problem]:
    """Return the problems in rotary settings; source: the archive's name, for messages."""
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
