# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face architecture that computes what a base computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nemo_launcher.families.hf_table import Table
from nemo_launcher.families.layer_shape import Shape

H = TypeVar("H", bound=Shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceLayout(Generic[H]):
    """How a base is written as a model of one Hugging Face architecture."""

    kind: str
    """The model_type of its configuration."""
    architecture: str
    """The class in transformers."""
    task: str
    """PEFT's name of what it does."""
    table: Callable[[H], Table]
    """Returns its modules and ours, for the base's shape."""
    configuration: Callable[[H], dict[str, object]]
    """Returns its part of config.json, for the base's shape."""
    zero_centered: bool = False
    """Whether its norms store weights as the base does, which may be minus 1; otherwise they are complete."""
    known: frozenset[str] | None = None
    """The names of the model's weights. Biases here that are not among them must be zero, as the conversion adds them.

    None: the model has what the base has.
    """
    file_names: Mapping[str, str] = field(default_factory=dict)
    """Names of weights in transformers -> their names in files."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Our weights that Hugging Face's folder repeats if the base has only the other one: {absent: present}."""


class NamedWeights(Mapping[str, Tensor]):
    """Weights of which only the names are known: equal names stand for equal values.

    A conversion asks which weights a model has and whether two of them are equal.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._numbers = {name: number for number, name in enumerate(dict.fromkeys(values.values()))}
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        return torch.tensor([self._numbers[self._values[name]]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
