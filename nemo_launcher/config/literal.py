# SPDX-License-Identifier: Apache-2.0
"""Final values in OmegaConf containers: `${` in text is literal and is not interpolated again."""

from __future__ import annotations

import re
from collections.abc import Mapping

from omegaconf import Container, DictConfig, OmegaConf


def literal_config(values: Mapping[str, object]) -> DictConfig:
    """Return plain values as a DictConfig in which all text is literal, even text with `${`."""
    config: DictConfig = OmegaConf.create({key: _escaped(value) for key, value in values.items()})
    return config


def plain_mapping(config: Container, *, resolve: bool = True) -> dict[str, object]:
    """Return a section as plain dicts, lists and scalars. Raises OmegaConfBaseException if it does not resolve."""
    plain = OmegaConf.to_container(config, resolve=resolve)
    if not isinstance(plain, dict):
        raise TypeError(f"a mapping was expected, not {type(plain).__name__}")
    return {str(key): value for key, value in plain.items()}


def _escaped(value: object) -> object:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value
