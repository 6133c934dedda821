# SPDX-License-Identifier: Apache-2.0
"""The interface of samples and batches for batching, caching and generation, in any model family."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, get_type_hints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nemo_launcher.data.choice_labels import ChoiceLabels


B = TypeVar("B", bound="Batch")


class Part(NamedTuple):
    """Consecutive tokens of a sample."""

    ids: list[int]
    """The token ids."""
    is_trained: bool
    """Whether they are in the loss."""
    title: str = ""
    """The name of their sequence, for a model with several."""


class Sample(Protocol):
    """One tokenized record. A family's own type is a dataclass with these fields and those that its packing needs."""

    @property
    def input_ids(self) -> list[int]:
        """The token ids of the prompt, followed by the answer in families with a single sequence."""

    @property
    def record(self) -> dict[str, object]:
        """The record of the data file; empty for a sample from a cache."""

    @property
    def source(self) -> str:
        """`file:line` of the record."""

    @property
    def num_shortened(self) -> int:
        """The number of tokens cut from the end of truncate_field."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens in the loss; of the right one of several answer choices."""

    @property
    def num_wrong_tokens(self) -> int:
        """The number of tokens of wrong answer choices; 0 without choices."""

    @property
    def num_input_tokens(self) -> int:
        """The number of input tokens in training."""

    @property
    def parts(self) -> list[Part]:
        """All tokens in order, those in the loss apart from the others."""


class Batch(Protocol):
    """One micro-batch, packed by a family."""

    @property
    def labels(self) -> Tensor:
        """The tokens in the loss, [n]."""

    @property
    def label_samples(self) -> Tensor:
        """The index in the micro-batch of each label's sample, or of its choice among all choices, [n]."""

    @property
    def label_counts(self) -> Tensor | None:
        """The number of samples that have each label at its position, [n]; None for one each."""

    @property
    def choices(self) -> ChoiceLabels | None:
        """The answer choices of the samples; None if each sample has one answer."""

    @property
    def num_computed_tokens(self) -> int:
        """The number of tokens in its rows."""

    def to(self: B, device: torch.device) -> B:
        """Return the batch with its tensors on `device`."""


S = TypeVar("S", bound=Sample)


class Fields(NamedTuple):
    """The fields of a sample type that a cache stores."""

    sequences: tuple[str, ...]
    """Fields with a list of token ids; `input_ids` comes first."""
    numbers: tuple[str, ...]
    """Fields with a non-negative integer."""


@cache
def stored_fields(sample_type: type[Sample]) -> Fields:
    """Return the fields of a sample type that a cache stores: all except `record` and `source`."""
    hints = get_type_hints(sample_type)
    return Fields(
        sequences=tuple(name for name, kind in hints.items() if kind == list[int]),
        numbers=tuple(name for name, kind in hints.items() if kind is int),
    )
