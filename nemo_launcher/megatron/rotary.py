# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: settings from a checkpoint's `model_config.yaml`, angles, and their application."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.errors import Problem
from nemo_launcher.files.values import Section, number, whole
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


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN: low frequencies are divided by `factor`, high ones are kept, those between are interpolated.

    Source: Peng et al. 2023 (arXiv:2309.00071), section 3.2 and equation 22, with the rounding of transformers. The
    names are those of megatron-core's `yarn_*` settings.
    """

    factor: float
    """The divisor of low frequencies."""
    original_length: float
    """The context length of the model's original training, in tokens."""
    fast: float
    """The number of turns in `original_length` from which a frequency is high (`yarn_beta_fast`)."""
    slow: float
    """The number of turns below which a frequency is low (`yarn_beta_slow`)."""
    rounds: bool
    """Whether the borders between dimensions are rounded to whole ones."""
    magnitude: float
    """The factor of the rotated queries and keys."""

    def apply(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the scaled frequencies, [rotary_dim / 2], in radians per token."""
        width = 2 * len(frequencies)
        low, high = (
            width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (self.fast, self.slow)
        )
        if self.rounds:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = torch.arange(len(frequencies), dtype=torch.float32, device=frequencies.device)
        scaled = ((ramp - low) / (high - low or 0.001)).clamp(0, 1)
        return frequencies / self.factor * scaled + frequencies * (1 - scaled)


_SCALING_KEYS = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")
_YARN_KEYS = ("yarn_scaling_factor", "yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow")
_OTHER_KEYS = ("rotary_percentage", "rotary_base", "rotary_base_local", "seq_len_interpolation_factor")


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
    yarn: Yarn | None = None
    """YaRN's scaling of the frequencies, or None."""
    divisors: tuple[float, ...] | None = None
    """LongRoPE's divisor of each frequency (its short factors), or None."""
    own_magnitude: float | None = None
    """LongRoPE's factor of rotated queries and keys, or None."""
    interleaved: bool | None = None
    """Whether the rotated pairs are adjacent dimensions; None: dimension i and i + rotary_dim / 2."""
    local_base: float | None = None
    """The base in layers with a window, without any scaling; None for that of the other layers."""

    @classmethod
    def from_config(cls, config: Section) -> Rotary:
        """Return the settings in a configuration that has no `problems`."""
        scaling = Llama3Scaling(**{key: value for key in _SCALING_KEYS if (value := number(config, key)) is not None})
        return cls(
            percentage=number(config, "rotary_percentage") or 1.0,
            base=number(config, "rotary_base") or 10000.0,
            interpolation_factor=number(config, "seq_len_interpolation_factor") or 1.0,
            scaling=scaling if config.get("scale_positional_embedding") else None,
            yarn=_yarn(config),
            divisors=_divisors(config),
            own_magnitude=number(config, "longrope_attention_factor"),
            interleaved=bool(config.get("rotary_interleaved")) or None,
            local_base=number(config, "rotary_base_local"),
        )

    def scaled(self, frequencies: Tensor) -> Tensor:
        """Return the frequencies with the settings' scaling, [rotary_dim / 2], in radians per token."""
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies)
        if self.yarn is not None:
            frequencies = self.yarn.apply(frequencies, self.base)
        if self.divisors is not None:
            frequencies = frequencies / torch.tensor(self.divisors, device=frequencies.device)
        return frequencies

    def angles(self, position_ids: Tensor, frequencies: Tensor) -> Tensor:
        """Return the angles of tokens, [s, b, 1, rotary_dim].

        position_ids: [b, s]; frequencies: those that are `scaled`, [rotary_dim / 2]. Megatron-core's own table counts
        from 0 along the row and requires CUDA.
        """
        return _angles(position_ids, frequencies, self.interpolation_factor)

    def local_angles(self, position_ids: Tensor, width: int) -> Tensor:
        """Return the angles of tokens in layers with a window, [s, b, 1, width]; width: rotary_dim."""
        assert self.local_base is not None
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids.device) / width
        return _angles(position_ids, 1.0 / self.local_base**exponents, 1.0)

    @property
    def magnitude(self) -> float:
        """The factor of rotated queries and keys."""
        return self.own_magnitude or (1.0 if self.yarn is None else self.yarn.magnitude)


def _angles(position_ids: Tensor, frequencies: Tensor, divisor: float) -> Tensor:
    half = position_ids.t()[..., None] / divisor * frequencies  # [s, b, rotary_dim / 2]
    return torch.cat((half, half), dim=-1)[:, :, None, :]


def _divisors(config: Section) -> tuple[float, ...] | None:
    values = config.get("longrope_short_factor")
    return tuple(map(float, values)) if isinstance(values, list) else None


def _yarn(config: Section) -> Yarn | None:
    factor, length = (number(config, key) for key in _YARN_KEYS[:2])
    if factor is None or length is None:
        return None
    own = number(config, "yarn_attention_factor")
    return Yarn(
        factor=factor,
        original_length=length,
        fast=number(config, "yarn_beta_fast") or 32.0,
        slow=number(config, "yarn_beta_slow") or 1.0,
        rounds=config.get("yarn_correction_range_round_to_int", True) is not False,
        magnitude=own if own is not None else 0.1 * math.log(max(factor, 1.0)) + 1.0,
    )


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of a row's queries and keys, shared by all layers."""

    cos: Tensor
    """Cosine of the angles, [s, b, 1, rotary_dim]."""
    sin: Tensor
    """Sine of the angles, [s, b, 1, rotary_dim], negated in the first dimension of each pair."""
    interleaved: bool = False
    """Whether the pairs are adjacent dimensions, instead of i and i + rotary_dim / 2."""

    @classmethod
    def from_angles(
        cls, angles: Tensor, dtype: torch.dtype, magnitude: float = 1.0, *, interleaved: bool = False
    ) -> Rotation:
        """Return the rotation by `angles`, [s, b, 1, rotary_dim], whose halves are equal, in `dtype`.

        magnitude: a factor of the rotated dimensions. interleaved: the rotated pairs are adjacent dimensions.
        """
        half = angles.size(-1) // 2
        if interleaved:
            angles = angles[..., :half].repeat_interleave(2, -1)
        cos, sin = angles.cos(), angles.sin()
        (sin[..., ::2] if interleaved else sin.narrow(-1, 0, half)).neg_()
        if magnitude != 1.0:
            cos, sin = cos * magnitude, sin * magnitude
        return cls(cos.to(dtype), sin.to(dtype), interleaved)

    def apply_rotary(self, tokens: Tensor) -> Tensor:
        """Return queries or keys, [s, b, heads, head_dim], rotated in their first rotary_dim dimensions.

        Source: Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34, with GPT-NeoX's order of dimensions.
        """
        rotated: Tensor = _ApplyRotary.apply(tokens, self.cos, self.sin, self.interleaved)
        return rotated


class _RotaryContext(Context):
    interleaved: bool


class _ApplyRotary(torch.autograd.Function):
    """The autograd function of Rotation.apply_rotary; its gradient is the transposed product."""

    @staticmethod
    def forward(ctx: _RotaryContext, tokens: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        """Return the rotated tokens, [s, b, heads, head_dim]."""
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotate(tokens, cos, sin, 1, interleaved)

    @staticmethod
    def backward(ctx: _RotaryContext, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the tokens; grad: [s, b, heads, head_dim]."""
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1, ctx.interleaved), None, None, None


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor, direction: int, interleaved: bool) -> Tensor:
    width = cos.size(-1)
    part = tokens[..., :width]
    other = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else part.roll(width // 2, -1)
    rotated = (part * cos).addcmul_(other, sin, value=direction)
    return rotated if width == tokens.size(-1) else torch.cat((rotated, tokens[..., width:]), -1)


def _pairs(config: Section) -> int:
    """Return the number of rotated pairs of dimensions of a head."""
    hidden, heads = whole(config, "hidden_size") or 0, whole(config, "num_attention_heads") or 1
    size = whole(config, "kv_channels") or hidden // heads
    return int(size * (number(config, "rotary_percentage") or 1.0)) // 2


def problems(config: Mapping[str, object], source: str) -> list[Problem]:
    """Return the problems in rotary settings; source: the archive's name, for messages."""
    found = []
    for key in (*_OTHER_KEYS, *_SCALING_KEYS, *_YARN_KEYS, "yarn_attention_factor", "longrope_attention_factor"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not a number above 0"))
    divisors = config.get("longrope_short_factor")
    if not found and isinstance(divisors, list) and len(divisors) != (pairs := _pairs(config)):
        what = f"has {len(divisors)} numbers, but {pairs} pairs of dimensions are rotated"
        found.append(Problem(f"{source}: longrope_short_factor", what))
    if found or not config.get("scale_positional_embedding"):
        return found
    scaling = Rotary.from_config(config).scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        what = f"{scaling.low_freq_factor:g} is not below high_freq_factor {scaling.high_freq_factor:g}"
        found.append(Problem(f"{source}: low_freq_factor", what))
    return found
