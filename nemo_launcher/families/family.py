# SPDX-License-Identifier: Apache-2.0
"""What a model family is: everything that differs between GPT and T5, in one row.

What is not in it is the same for all: archives, adapter methods, training, evaluation and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from nemo_launcher.families.decoding import Decoding
from nemo_launcher.families.stacks import Stack
from nemo_launcher.files.values import Section

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nemo_launcher.data.tokenizers import Tokenizer


class HuggingFaceModel(Protocol):
    """How a kind of Hugging Face model becomes a base: a module with these functions."""

    TARGET: str
    """The class of NeMo that the base names."""

    def nemo_config(self, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Return the model's part of `model_config.yaml`; config: transformers' configuration."""

    def convert_weights(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return the weights by our names."""

    def to_stored(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return our weights by the names in the archive."""

    def tokenizer_section(self, vocab: Iterable[str]) -> dict[str, object]:
        """Return what the family adds to the configuration's `tokenizer` section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family."""

    name: str
    """A FamilyName's `engine` (config.families)."""
    title: str
    """The family's name in messages."""
    model_class: type[nn.Module]
    """The class of its frozen model."""
    owns_adapter: Callable[[Iterable[str]], bool]
    """Whether an adapter with these keys in its state dict belongs to the family."""
    renaming: Callable[[Section], Callable[[str], str | None]]
    """What gives a stored weight our name (checkpoint.sharding.StoredWeights)."""
    is_gated: Callable[[Section], bool]
    """Whether the first feed-forward matrix is [gate | up]."""
    embedding: str
    """Our name of the token embedding."""
    read_shape: Callable[..., Any]
    """The shape from configuration, rows of the embedding and archive name."""
    build: Callable[..., Any]
    """The model from its shape."""
    stacks: Callable[[Any, Any], list[Stack]]
    """The stacks of layers that adapters go into, of a model and its shape."""
    stack_shapes: Callable[[Any], Mapping[str, Any]]
    """The shapes of the stacks by name."""
    prompt_encoder: Callable[..., Any]
    """What turns records into samples."""
    nemo_length: Callable[[int | None], int | None]
    """The tokens that NeMo generates greedily whatever `inference` says, from the adapter's decoder_seq_length; None:
    it does as `inference` says."""
    text: Callable[[Tokenizer, Sequence[int]], str]
    """The text of a prompt or prediction, special tokens left out."""
    joint: str
    """What stands between prompt and prediction in the documented predictions file."""
    pack: Callable[..., Any]
    """The samples of a micro-batch as one batch."""
    shares_prefixes: bool
    """Whether `pack` lays common prefixes out once."""
    run: Callable[[Any, Any], Tensor]
    """The logits of a batch's labels, of a model and the batch."""
    start_decoding: Callable[..., Decoding]
    """The state in which samples are generated."""
    hugging_face: dict[str, HuggingFaceModel]
    """How a Hugging Face model becomes a base, by its model_type."""
