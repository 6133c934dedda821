# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: what a checkpoint's `model_config.yaml` says of them, the angles of tokens, and how they turn."""

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
    """Llama 3.1's way to longer contexts: slow frequencies are divided by `scale_factor`, fast ones stay.

    A frequency is slow when it turns less than `low_freq_factor` times in `old_context_len` tokens, and fast when it
    turns `high_freq_factor` times or more. The names are those of NeMo 2.x's Llama31Config; NeMo 1.x's
    `scale_positional_embedding: True` has no more than a `scale_factor`.
    """

    scale_factor: float = 8.0
    """Divides slow frequencies."""
    low_freq_factor: float = 1.0
    """Turns below which a frequency is slow."""
    high_freq_factor: float = 4.0
    """Turns from which on a frequency is fast."""
    old_context_len: float = 8192.0
    """Tokens of the context that the model was first trained with."""

    def apply(self, frequencies: Tensor) -> Tensor:
        """Return the scaled frequencies, [rotary_dim / 2] radians a token."""
        turns = self.old_context_len * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.scale_factor, frequencies, kept.clamp(0.0, 1.0))


_SCALING_KEYS = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")


@dataclass(frozen=True, slots=True)
class Rotary:
    """How positions turn queries and keys."""

    percentage: float
    """The share of a head's dimensions that is turned."""
    base: float
    """The base of the frequencies."""
    interpolation_factor: float
    """Divides the positions."""
    scaling: Llama3Scaling | None
    """Llama 3's scaling of the frequencies; None: none."""

    @classmethod
    def from_config(cls, config: Section) -> Rotary:
        """Read a configuration without `problems`."""
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
        the row, and asks for CUDA.
        """
        frequencies = frequencies.to(position_ids.device)
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies)
        half = position_ids.t()[..., None] / self.interpolation_factor * frequencies  # [s, b, rotary_dim / 2]
        return torch.cat((half, half), dim=-1)[:, :, None, :]


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the tokens of a row turn their queries and keys, the same in all layers."""

    cos: Tensor
    """Cosine of the angles, [s, b, 1, rotary_dim]."""
    sin: Tensor
    """Sine of the angles, [s, b, 1, rotary_dim]; its first half has the other sign."""

    @classmethod
    def from_angles(cls, angles: Tensor, dtype: torch.dtype) -> Rotation:
        """angles: [s, b, 1, rotary_dim], both halves alike; dtype: of queries and keys."""
        sin = angles.sin()
        sin.narrow(-1, 0, angles.size(-1) // 2).neg_()
        return cls(angles.cos().to(dtype), sin.to(dtype))

    def apply_rotary(self, tokens: Tensor) -> Tensor:
        """Return queries or keys, [s, b, heads, head_dim], turned in their first rotary_dim dimensions.

        Source: Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34, with GPT-NeoX's order of the dimensions.
        """
        turned: Tensor = _Turned.apply(tokens, self.cos, self.sin)
        return turned


class _Turned(torch.autograd.Function):
    """See Rotation.apply_rotary; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Context, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """tokens: [s, b, heads, head_dim]."""
        ctx.save_for_backward(cos, sin)
        return _turned(tokens, cos, sin, 1)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        """grad: [s, b, heads, head_dim]."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(tokens: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    width = cos.size(-1)
    part = tokens[..., :width]
    turned = (part * cos).addcmul_(part.roll(width // 2, -1), sin, value=direction)
    return turned if width == tokens.size(-1) else torch.cat((turned, tokens[..., width:]), -1)


def problems(config: Mapping[str, object], source: str) -> list[Problem]:
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
