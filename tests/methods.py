# SPDX-License-Identifier: Apache-2.0
"""The adapter methods for tests: names and example settings from the registry."""

from __future__ import annotations

from typing import Any

from nemo_launcher.adapters.registry import methods

METHODS = tuple(methods())


def model_section(method: str, **changes: Any) -> dict[str, Any]:
    """Return a `model` section with the method's example settings; changes: of its `adapter_tuning`."""
    found = methods()[method]
    block = {"adapter_tuning": {**found.settings.EXAMPLE, **changes}} if found.has_block else {}
    return {"seed": 1, **block}


def with_setting(name: str) -> tuple[str, ...]:
    """Return the methods with a setting of this name."""
    return tuple(method for method, found in methods().items() if name in found.settings.__dataclass_fields__)
