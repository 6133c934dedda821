# SPDX-License-Identifier: Apache-2.0
"""The table of model families, read by the launcher, the conversion and the engine.

The first part of a choice such as `t5/squad` is the name of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyName:
    """Facts about a model family that need none of its code."""

    title: str
    """The name of its models in messages."""
    engine: str
    """The folder in nemo_launcher/families with its code."""
    converter: str
    """The file in conf/conversion_hf2nemo that converts its models."""


FAMILIES: dict[str, FamilyName] = {
    "gpt3": FamilyName(
        title="Megatron GPT",
        engine="gpt",
        converter="hf_gpt",
    ),
    "llama": FamilyName(
        title="Llama",
        engine="gpt",
        converter="hf",
    ),
    "t5": FamilyName(
        title="Megatron T5",
        engine="t5",
        converter="hf_t5",
    ),
}


def is_t5(config: Mapping[str, object]) -> bool:
    """Return whether a checkpoint's configuration is a T5's, by its sections or, in older ones, its class."""
    sections = all(isinstance(config.get(name), Mapping) for name in ("encoder", "decoder"))
    return sections or str(config.get("target", "")).endswith("T5Model")


def engine_of(config: Mapping[str, object]) -> str:
    """Return the `engine` of the family of a base checkpoint with this configuration."""
    return "t5" if is_t5(config) else "gpt"
