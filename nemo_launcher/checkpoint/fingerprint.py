# SPDX-License-Identifier: Apache-2.0
"""Fingerprint of a base, which identifies the base of an adapter in any file, layout or parallel size.

It covers the weights and the settings that affect the computation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from nemo_launcher.checkpoint.norms import is_zero_centered
from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.files.values import Section, below

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


# The number of values read from each weight. They are in its first row, which is in the first rank's file in every
# layout. Further training changes them, and only a few pages of each weight have to be read.
NUMBERS = 8
_AT_ONCE = 1 << 15
"""The number of values rounded at a time: copies of a whole embedding may not fit and would fragment the heap."""

Setting = str | int | float | bool
Settings = dict[str, Setting]
_SIZES_OF_WEIGHTS = ("num_layers", "hidden_size", "ffn_hidden_size", "vocab_size")  # the weights imply them
_LIMITS = ("max_position_embeddings", "encoder_seq_length", "activation")  # no effect on results, or redundant


def fingerprint(weights: StoredWeights, settings: Mapping[str, Setting] | None = None) -> str:
    """Return `sha256:` and 32 hexadecimal digits over the names and first values, rounded to bf16, of all weights.

    The rounding gives a base and its bf16 copy the same fingerprint. The number of rows of an embedding is excluded, as
    Megatron pads it differently for each tensor-parallel size. settings: `settings_of` the base; they append `+` and 8
    digits, which fingerprints of older versions lack.
    """
    digest = hashlib.sha256()
    for name in sorted(weights.names):
        if name == "output_layer.weight" and "embedding.word_embeddings.weight" in weights.names:
            continue  # only some layouts store a tied head
        numbers = _bits(weights.first_numbers(name, NUMBERS))
        digest.update(name.encode())
        digest.update(numbers.numpy().tobytes())
    mark = f"sha256:{digest.hexdigest()[:32]}"
    if settings is None:
        return mark
    return f"{mark}+{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def sum_of_bits(weight: torch.Tensor) -> int:
    """Return the sum of a weight's values, rounded to bf16, as the 16-bit integers of their bit patterns.

    The sums of a weight's parts on several ranks add up to the sum of the weight, in any order of rows.
    """
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    return sum(int(_bits(part).sum(dtype=torch.int64)) for part in weight.split(rows))


def checksum(sums: Mapping[str, int]) -> str:
    """Return `sum:` and 16 hexadecimal digits over the `sum_of_bits` of all weights of a base, by name.

    Unlike the fingerprint it depends on every value, so all weights must be read.
    """
    text = json.dumps(sorted(sums.items()))
    return f"sum:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.bfloat16).view(torch.int16)


def settings_of(shape: DataclassInstance, config: Section) -> Settings:
    """Return the settings of a base that affect its computation, under flat names.

    shape: the family's (families.Family.read_shape); config: of the archive.
    """
    settings = _flat(asdict(shape), "")
    sections = {"": config} | {name: below(config, name) for name in ("encoder", "decoder")}
    for name, section in sections.items():
        if is_zero_centered(section):
            settings[f"{name}.norm_about_zero".removeprefix(".")] = True
    return settings


def same_weights(one: str, other: str) -> bool:
    """Return whether two fingerprints are of the same weights."""
    return one.partition("+")[0] == other.partition("+")[0]


def same_settings(one: str, other: str) -> bool:
    """Return whether two fingerprints have the same settings; True if one has none."""
    settings = [mark.partition("+")[2] for mark in (one, other)]
    return "" in settings or settings[0] == settings[1]


def _flat(values: Mapping[str, Any], prefix: str) -> Settings:
    flat: Settings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None and key not in _SIZES_OF_WEIGHTS + _LIMITS:
            flat[f"{prefix}{key}"] = value.__name__.strip("_") if callable(value) else value
    return flat
