# SPDX-License-Identifier: Apache-2.0
"""The rotary positions of a GGUF file, as Hugging Face's `rope_parameters`. Imports no torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeGuard

from nemo_launcher.checkpoint.gguf_file import GGUFKeys
from nemo_launcher.errors import Problem, UserError

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_BASE, _TYPE, _LENGTH = "rope.freq_base", "rope.scaling.type", "rope.scaling.original_context_length"
_FACTOR, _MAGNITUDE = "rope.scaling.factor", "rope.scaling.attn_factor"
_CLOSE = 1e-5
"""Relative tolerance; the factors are stored in float32."""
_FIX = "use a model with Llama 3 scaling, linear scaling or none"
_OTHER = "use another file of the model"


def whole_rope(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the parameters of positions that rotate whole heads. Raises UserError for what cannot be exact."""
    _check_dimensions(keys, head_dim)
    base = _number(keys, _BASE, 10000.0, above=1)
    scaling = keys.get(_TYPE, "none")
    factor = keys.get(_FACTOR, keys.get("rope.scale_linear"))
    if _TYPE not in keys and factor not in (None, 0, 1):
        scaling = "linear"  # llama.cpp's meaning of a factor without a type
    if scaling not in ("none", "linear"):
        raise UserError(keys.wrong(_TYPE, f"{str(scaling)[:40]!r} is not supported", _FIX))
    if keys.get(_MAGNITUDE, 1) != 1:
        raise UserError(keys.wrong(_MAGNITUDE, "is not supported", _FIX))
    factors = _stored_factors(keys, FREQUENCIES, head_dim)
    if factors is not None and any(abs(value - 1) > _CLOSE for value in factors):
        if scaling != "none":
            raise UserError(keys.wrong(_TYPE, f"cannot be combined with {FREQUENCIES}, which also scales", _FIX))
        found = _llama3(factors, base, head_dim)
        if found is None:
            what = "holds factors that are not those of Llama 3's scaling"
            raise UserError(Problem(f"{keys.file.path}: {FREQUENCIES}", what, _FIX))
        return {"rope_type": "llama3", "rope_theta": base, **found}
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": base}
    if not _is_number(factor) or not 0 < factor < math.inf:
        raise UserError(keys.wrong(_FACTOR, f"{factor!r} is not a number above 0", _FIX))
    return {"rope_type": "linear", "rope_theta": base, "factor": float(factor)}


def layered_rope(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the parameters for layers without and with a window, which are never scaled. Raises UserError."""
    local = _number(keys, "rope.freq_base_swa", 10000.0, above=1)
    return {
        "full_attention": whole_rope(keys, head_dim),
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def partial_rope(keys: GGUFKeys, head_dim: int) -> dict[str, object]:
    """Return the parameters of positions that rotate a part of each head, with LongRoPE's factors if the file has them.

    Raises UserError for dimensions, factors and scalings that cannot be exact.
    """
    dimensions = keys.get("rope.dimension_count", head_dim)
    if type(dimensions) is not int or not 0 < dimensions <= head_dim or dimensions % 2:
        what = f"{dimensions!r} is not an even number up to the size of a head, {head_dim}"
        raise UserError(keys.wrong("rope.dimension_count", what))
    part = dimensions / head_dim
    if int(head_dim * part) != dimensions:
        raise UserError(keys.wrong("rope.dimension_count", f"{dimensions} of {head_dim} is not supported"))
    rope: dict[str, object] = {"rope_theta": _number(keys, _BASE, 10000.0, above=1), "partial_rotary_factor": part}
    long, short = (_stored_factors(keys, name, dimensions) for name in (LONG, SHORT))
    scaling, types = keys.get(_TYPE, "none"), ("none", "longrope")
    if scaling not in types or (scaling == "longrope" and short is None):
        raise UserError(keys.wrong(_TYPE, f"{str(scaling)[:40]!r} is not supported", _OTHER))
    if short is None and long is None:
        for key in (_FACTOR, "rope.scale_linear", _MAGNITUDE):
            if keys.get(key, 1) not in (0, 1):
                raise UserError(keys.wrong(key, f"is not supported without {SHORT}", _OTHER))
        return {"rope_type": "default", **rope}
    if short is None or long is None:
        what = f"holds {SHORT if short else LONG}, but not {LONG if short else SHORT}"
        raise UserError(Problem(str(keys.file.path), what, _OTHER))
    length = keys.get(_LENGTH)
    if type(length) is not int or length < 2:
        raise UserError(keys.wrong(_LENGTH, f"{length!r} is not a number above 1, which LongRoPE needs", _OTHER))
    return {
        "rope_type": "longrope",
        **rope,
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": length,
        "attention_factor": _number(keys, _MAGNITUDE, None, above=0),
    }


def _check_dimensions(keys: GGUFKeys, head_dim: int) -> None:
    if keys.get("rope.dimension_count", head_dim) != head_dim:
        what = f"{keys.get('rope.dimension_count')!r} is not the size of a head, {head_dim!r}"
        raise UserError(keys.wrong("rope.dimension_count", what))


def _number(keys: GGUFKeys, key: str, default: float | None, above: float) -> float:
    value = keys.get(key, default)
    if not _is_number(value) or not above < value < math.inf:
        raise UserError(keys.wrong(key, f"{value!r} is not a number above {above}", _OTHER))
    return float(value)


def _stored_factors(keys: GGUFKeys, name: str, dimensions: int) -> tuple[float, ...] | None:
    """Return the divisor of each frequency, [dimensions / 2], or None without stored factors."""
    tensor = keys.file.tensors.get(name)
    if tensor is None:
        return None
    where = f"{keys.file.path}: {name}"
    if tensor.shape != (dimensions // 2,) or tensor.kind != "F32":
        half = dimensions // 2
        what = f"has shape {tensor.shape} of {tensor.kind}, but a head of {dimensions} needs ({half},) of F32"
        raise UserError(Problem(where, what, _FIX))
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset)
        factors = struct.unpack(f"<{tensor.numel}f", stream.read(tensor.num_bytes))
    if not all(math.isfinite(value) and value > 0 for value in factors):
        raise UserError(Problem(where, "holds factors that are not above 0", _FIX))
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
