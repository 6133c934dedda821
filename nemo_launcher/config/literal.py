# SPDX-License-Identifier: Apache-2.0
"""Values that are final, in OmegaConf's containers: `${` in a text stands for itself and is never resolved again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def literal_config(values: Mapping[str, Any]) -> DictConfig:
    """Return plain values as a DictConfig whose texts read as they are, also those that hold `${`."""
    return OmegaConf.create(_escaped(dict(values)))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value
