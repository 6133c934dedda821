"""Rotary positions: what a checkpoint's `model_config.yaml` says of them, and the angles of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.errors import Problem

# Llama 3.1's scaling of the frequencies, under the names of NeMo 2.x's Llama31Config. Megatron-core takes another
# scale_factor only.
LLAMA3_SCALING = {"scale_factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 8192}


@dataclass(frozen=True, slots=True)
class Rotary:
    """How queries and keys are turned.

    percentage: the share of a head's dimensions that is turned. base: of the frequencies. interpolation_factor:
    positions are divided by it. scale_factor: of Llama 3.1's scaling, None without it.
    """

    percentage: float
    base: float
    interpolation_factor: float
    scale_factor: float | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rotary:
        """Read a configuration without `problems`."""
        scale = float(config.get("scale_factor") or LLAMA3_SCALING["scale_factor"])
        return cls(
            percentage=float(config.get("rotary_percentage") or 1.0),
            base=float(config.get("rotary_base") or 10000.0),
            interpolation_factor=float(config.get("seq_len_interpolation_factor") or 1.0),
            scale_factor=scale if config.get("scale_positional_embedding") else None,
        )


def problems(config: Mapping[str, Any], source: str) -> list[Problem]:
    """Return what is no positive number, and the scalings that are not supported."""
    found = []
    for key in ("rotary_percentage", "rotary_base", "seq_len_interpolation_factor", "scale_factor"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not a number above 0"))
    if config.get("scale_positional_embedding"):
        for key in LLAMA3_SCALING.keys() - {"scale_factor"}:
            value, only = config.get(key), LLAMA3_SCALING[key]
            if value is not None and value != only:
                found.append(Problem(f"{source}: {key}", f"{value!r} is not supported", f"supported: {only}"))
    return found


def angles(position_ids: Tensor, frequencies: Tensor, interpolation_factor: float) -> Tensor:
    """Return the angles of tokens, [s, b, 1, rotary_dim].

    position_ids: [b, s]; frequencies: [rotary_dim / 2]. Megatron-core's own table counts from 0 along the row, and asks
    for CUDA.
    """
    positions = position_ids.t()[..., None] / interpolation_factor  # [s, b, 1]
    half = positions * frequencies.to(position_ids.device)
    return torch.cat((half, half), dim=-1)[:, :, None, :]
