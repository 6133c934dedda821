# SPDX-License-Identifier: Apache-2.0
"""The adapter methods for tests: names and example settings from the registry."""

from __future__ import annotations

from typing import Any

from nemo_launcher.adapters.registry import AdapterMethod, methods
from nemo_launcher.config.ignored import LEARNING as STAGES

METHODS = tuple(methods())
LEARNING = tuple(stage.removesuffix("_learning") for stage in STAGES)
"""What conf/ names the two ways of learning by: one with a block of settings, one without."""


def model_section(method: str, **changes: Any) -> dict[str, Any]:
    """Return a `model` section with the method's example settings; changes: of its block."""
    found = methods()[method]
    block = {**found.settings.EXAMPLE, **changes}
    return {"seed": 1, **({found.block: block} if block else {})}


def at_other_sites() -> tuple[str, ...]:
    """Return one method for each set of sites that adapters act at."""
    first: dict[frozenset[Any], str] = {}
    for method, found in methods().items():
        sites = frozenset(placement.site for placement in found.settings.from_block(_block(found)).placements())
        first.setdefault(sites, method)
    return tuple(first.values())


def schemes() -> dict[str, str]:
    """Return the methods that NeMo has a `peft_scheme` for, by that name."""
    return {found.scheme: method for method, found in methods().items() if found.scheme is not None}


def _block(method: AdapterMethod) -> dict[str, Any] | None:
    return method.settings.EXAMPLE if method.has_block else None


def with_setting(name: str) -> tuple[str, ...]:
    """Return the methods with a setting of this name."""
    return tuple(method for method, found in methods().items() if name in found.settings.__dataclass_fields__)
