# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, and numbers out of files that anyone may have written."""

from __future__ import annotations

import math


def number(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def short(value: float) -> str:
    """Return a number with three to four significant digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def whole(value: object) -> str | None:
    """Return a number without decimals, with separators; None for anything else."""
    found = number(value)
    return None if found is None else f"{found:,.0f}"


def figure(value: object, *, is_share: bool) -> str:
    """Return a figure, a share in percent; a dash for none."""
    found = number(value)
    if found is None:
        return "-"
    return f"{found:.1%}" if is_share else short(found)


def interval(low: object, high: object, *, is_share: bool) -> str:
    """Return the ends of an interval; empty for none."""
    if number(low) is None or number(high) is None:
        return ""
    return f"{figure(low, is_share=is_share)} to {figure(high, is_share=is_share)}"
