# SPDX-License-Identifier: Apache-2.0
"""The rules of an `adapter_tuning` block that launcher and engine share. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_launcher.errors import Problem

DEFAULTS: dict[str, Any] = {
    "norm_position": "pre",
    "norm_type": "mixedfusedlayernorm",
    "column_init_method": "xavier",
    "row_init_method": "zero",
    "adapter_dropout": 0.0,
}
"""NeMo 1.20's, for keys that are left out; `norm_position: null` is no norm."""
# Settings that change what an adapter computes. adapter_dropout acts in training alone, the initial weights are
# replaced by those that are loaded, and both of NeMo's norm types compute the same.
_FUNCTION = ("type", "adapter_dim", "norm_position")
# method -> the keys that NeMo's adapter of this name does not read (nemo/collections/common/parts/adapter_modules.py)
_UNREAD = {"linear_adapter": ("column_init_method", "row_init_method")}


def unread_settings(block: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the keys whose values would have no effect: key, what is wrong, the value that says what happens."""
    method = str(block.get("type"))
    return [
        (key, f"{block[key]!r} has no effect: {method} has initial weights of its own", DEFAULTS[key])
        for key in _UNREAD.get(method, ())
        if block.get(key, DEFAULTS[key]) != DEFAULTS[key]
    ]


def changed_settings(earlier: Mapping[str, Any], asked: Mapping[str, Any], source: str) -> list[Problem]:
    """Return the settings by which an adapter of `source` computes something else than the one that is asked for.

    earlier, asked: `adapter_tuning` blocks, {} for IA3, which has no settings.
    """
    pairs = {key: (_value(earlier, key), _value(asked, key)) for key in _FUNCTION}
    return [
        Problem(
            f"model.adapter_tuning.{key}",
            f"is {_shown(new)}, the adapter in {source} has {_shown(old)}",
            f"model.adapter_tuning.{key}={_shown(old)}, or leave restore_path out"
            if asked and earlier
            else "name an adapter of this method, or leave restore_path out",
        )
        for key, (old, new) in pairs.items()
        if old != new and (key == "type" or pairs["type"][0] == pairs["type"][1])
    ]


def _value(block: Mapping[str, Any], key: str) -> Any:
    value = block.get(key, DEFAULTS.get(key)) if block else ("ia3" if key == "type" else None)
    return None if value == "none" else value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
