# SPDX-License-Identifier: Apache-2.0
"""What batching, caching and generation read of a sample, whatever the model family that made it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    import torch
    from torch import Tensor


B = TypeVar("B", bound="Batch")


class Sample(Protocol):
    """One tokenised record. A family's own type is a dataclass with at least these, and what its packing needs."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids of the prompt, and of the answer behind it where the family has one sequence."""

    @property
    def record(self) -> dict[str, object]:
        """The record of the data file; empty for one that comes from a cache."""

    @property
    def source(self) -> str:
        """`file:line` of the record."""

    @property
    def num_shortened(self) -> int:
        """Tokens that the prompt lost with the end of its truncate_field."""

    @property
    def num_trained_tokens(self) -> int:
        """Tokens in the loss."""

    @property
    def num_input_tokens(self) -> int:
        """Tokens that the model sees in training."""


class Batch(Protocol):
    """One micro-batch, as a family packs it."""

    @property
    def labels(self) -> Tensor:
        """The tokens that are in the loss, [n]."""

    @property
    def label_samples(self) -> Tensor:
        """The sample of each label, as its index in the micro-batch, [n]."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in its rows."""

    def to(self: B, device: torch.device) -> B:
        """Return the batch with its tensors on `device`."""


S = TypeVar("S", bound=Sample)


class Fields(NamedTuple):
    """The fields of a sample's dataclass that a cache stores."""

    sequences: tuple[str, ...]
    """Lists of token ids; `input_ids` comes first."""
    numbers: tuple[str, ...]
    """Single whole numbers, 0 or more."""


@cache
def stored_fields(sample_type: type[Sample]) -> Fields:
    """Return the fields of a type of samples that decide what it is: all but `record` and `source`."""
    hints = get_type_hints(sample_type)
    return Fields(
        sequences=tuple(name for name, kind in hints.items() if kind == list[int]),
        numbers=tuple(name for name, kind in hints.items() if kind is int),
    )
