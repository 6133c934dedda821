# SPDX-License-Identifier: Apache-2.0
"""The scaling of rotary positions in a GGUF file, as Hugging Face's `rope_parameters`. Imports no torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeGuard

from nemo_launcher.checkpoint.gguf_file import GGUFFile
from nemo_launcher.errors import Problem, UserError

_FREQUENCIES = "rope_freqs.weight"
_CLOSE = 1e-5
"""Relative tolerance; the factors are stored in float32."""
_FIX = "use a model with Llama 3 scaling, linear scaling or none"


def rope_parameters(file: GGUFFile, kind: str, head_dim: int) -> dict[str, str | float]:
    """Return `rope_parameters`. Raises UserError for a scaling that cannot be converted exactly."""
    metadata, source = file.metadata, str(file.path)
    base = metadata.get(f"{kind}.rope.freq_base", 10000.0)
    if not _is_number(base) or not 1 < base < math.inf:
        raise UserError(Problem(f"{source}: {kind}.rope.freq_base", f"{base!r} is not a number above 1"))
    scaling = metadata.get(f"{kind}.rope.scaling.type", "none")
    factor = metadata.get(f"{kind}.rope.scaling.factor", metadata.get(f"{kind}.rope.scale_linear"))
    if scaling == "none" and f"{kind}.rope.scaling.type" not in metadata and factor not in (None, 0, 1):
        scaling = "linear"  # llama.cpp's meaning of a factor without a type
    where = f"{source}: {kind}.rope.scaling.type"
    if scaling not in ("none", "linear"):
        raise UserError(Problem(where, f"{str(scaling)[:40]!r} is not supported", _FIX))
    if f"{kind}.rope.scaling.attn_factor" in metadata and metadata[f"{kind}.rope.scaling.attn_factor"] != 1:
        raise UserError(Problem(f"{source}: {kind}.rope.scaling.attn_factor", "is not supported", _FIX))
    factors = _stored_factors(file, head_dim)
    if factors is not None and any(abs(value - 1) > _CLOSE for value in factors):
        if scaling != "none":
            raise UserError(Problem(where, f"cannot be combined with {_FREQUENCIES}, which also scales", _FIX))
        found = _llama3(factors, float(base), head_dim)
        if found is None:
            raise UserError(
                Problem(f"{source}: {_FREQUENCIES}", "holds factors that are not those of Llama 3's scaling", _FIX)
            )
        return {"rope_type": "llama3", "rope_theta": base, **found}
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": base}
    if not _is_number(factor) or not 0 < factor < math.inf:
        raise UserError(Problem(f"{source}: {kind}.rope.scaling.factor", f"{factor!r} is not a number above 0", _FIX))
    return {"rope_type": "linear", "rope_theta": base, "factor": float(factor)}


def _stored_factors(file: GGUFFile, head_dim: int) -> tuple[float, ...] | None:
    """Return the divisor of each frequency, [head_dim / 2], or None without stored factors."""
    tensor = file.tensors.get(_FREQUENCIES)
    if tensor is None:
        return None
    if tensor.shape != (head_dim // 2,) or tensor.kind != "F32":
        what = f"has shape {tensor.shape} of {tensor.kind}, but a head of {head_dim} needs ({head_dim // 2},) of F32"
        raise UserError(Problem(f"{file.path}: {_FREQUENCIES}", what, _FIX))
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset)
        factors = struct.unpack(f"<{tensor.numel}f", stream.read(tensor.num_bytes))
    if not all(math.isfinite(value) and value > 0 for value in factors):
        raise UserError(Problem(f"{file.path}: {_FREQUENCIES}", "holds factors that are not above 0", _FIX))
    return factors


def _llama3(factors: Sequence[float], base: float, head_dim: int) -> dict[str, float] | None:
    """Return the parameters of Llama 3's scaling with these factors, or None.

    Published models have low_freq_factor 1, high_freq_factor 4 and a context that is a power of 2. Other parameters are
    solved for: between the limits, the kept fraction grows linearly with the frequency.
    """
    scale = max(factors)
    frequencies = [base ** (-2 * number / head_dim) for number in range(len(factors))]
    candidates = [(1.0, 4.0, 2**power) for power in (13, *range(3, 24))]
    kept = [(1 / factor - 1 / scale) / (1 - 1 / scale) for factor in factors]
    between = [(f, k) for f, k in zip(frequencies, kept, strict=True) if 1e-3 < k < 1 - 1e-3]
    if len(between) > 1:
        (f1, k1), (f2, k2) = between[0], between[-1]
        slope = (k1 - k2) * (f1 - f2) ** -1
        start = slope * f1 - k1
        if slope > 0 and start > 0:
            high = 1 + 1 / start
            candidates.append((1.0, high, max(1, round(2 * math.pi * slope * (high - 1)))))
    for low, high, context in candidates:
        wanted = [_factor(frequency, scale, low, high, context) for frequency in frequencies]
        if all(abs(w - f) <= _CLOSE * f for w, f in zip(wanted, factors, strict=True)):
            return {
                "factor": scale,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _factor(frequency: float, scale: float, low: float, high: float, context: int) -> float:
    kept = (context * frequency / (2 * math.pi) - low) / (high - low)
    kept = min(1.0, max(0.0, kept))
    return 1 / ((1 - kept) / scale + kept)
