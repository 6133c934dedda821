# SPDX-License-Identifier: Apache-2.0
"""What a model family is: everything that differs between GPT and T5, in one row.

What is not in it is the same for all: archives, adapter methods, training, evaluation and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from nemo_launcher.data.prompt_encoder import PromptSettings, SampleEncoder
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.families.decoding import Decoding
from nemo_launcher.families.layer_shape import LayerShape, Shape
from nemo_launcher.families.stacks import Stack
from nemo_launcher.files.values import Section
from nemo_launcher.megatron.sizes import ParallelSizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nemo_launcher.data.tokenizers import Tokenizer


M = TypeVar("M", bound=nn.Module)
H = TypeVar("H", bound=Shape)
S = TypeVar("S", bound=Sample)
B = TypeVar("B", bound=Batch)
M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
H_co = TypeVar("H_co", bound=Shape, covariant=True)
B_co = TypeVar("B_co", bound=Batch, covariant=True)
H_contra = TypeVar("H_contra", bound=Shape, contravariant=True)
S_contra = TypeVar("S_contra", bound=Sample, contravariant=True)


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


class ReadShape(Protocol[H_co]):
    """Reads the shape of a base from its configuration."""

    def __call__(self, config: Section, *, vocab_size: int, source: str) -> H_co:
        """Return the shape; vocab_size: rows of the embedding; source: the archive, for messages."""


class Build(Protocol[H_contra, M_co]):
    """Makes a frozen model without weights."""

    def __call__(self, shape: H_contra, *, dtype: torch.dtype = ..., sizes: ParallelSizes = ...) -> M_co:
        """Return this rank's part of the model."""


class MakeEncoder(Protocol[H_contra, S]):
    """Makes what turns records into samples."""

    def __call__(
        self,
        tokenizer: Tokenizer,
        shape: H_contra,
        settings: PromptSettings,
        *,
        encoder_seq_length: int | None = None,
        nemo_compat: bool = False,
        tokens_to_generate: int | None = None,
        add_bos: bool | None = None,
    ) -> SampleEncoder[S]:
        """Return the encoder of a training; with `tokens_to_generate` one for inference."""


class Pack(Protocol[S_contra, B_co]):
    """Lays the samples of a micro-batch out."""

    def __call__(self, samples: Sequence[S_contra], *, share_prefix: bool = ...) -> B_co:
        """Return the batch; share_prefix: lay common prefixes out once, where the family can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Generic[M, H, S, B]):
    """One model family: its model, shape, samples and batches fit each other."""

    name: str
    """A FamilyName's `engine` (config.families)."""
    title: str
    """The family's name in messages."""
    model_class: type[M]
    """The class of its frozen model."""
    owns_adapter: Callable[[Iterable[str]], bool]
    """Whether an adapter with these keys in its state dict belongs to the family."""
    renaming: Callable[[Section], Callable[[str], str | None]]
    """What gives a stored weight our name (checkpoint.sharding.StoredWeights)."""
    is_gated: Callable[[Section], bool]
    """Whether the first feed-forward matrix is [gate | up]."""
    embedding: str
    """Our name of the token embedding."""
    read_shape: ReadShape[H]
    """The shape from configuration, rows of the embedding and archive name."""
    build: Build[H, M]
    """The model from its shape."""
    stacks: Callable[[M, H], list[Stack]]
    """The stacks of layers that adapters go into, of a model and its shape."""
    stack_shapes: Callable[[H], Mapping[str, LayerShape]]
    """The shapes of the stacks by name."""
    prompt_encoder: MakeEncoder[H, S]
    """What turns records into samples."""
    nemo_length: Callable[[int | None], int | None]
    """The tokens that NeMo generates greedily whatever `inference` says, from the adapter's decoder_seq_length; None:
    it does as `inference` says."""
    text: Callable[[Tokenizer, Sequence[int]], str]
    """The text of a prompt or prediction, special tokens left out."""
    joint: str
    """What stands between prompt and prediction in the documented predictions file."""
    pack: Pack[S, B]
    """The samples of a micro-batch as one batch."""
    shares_prefixes: bool
    """Whether `pack` lays common prefixes out once."""
    run: Callable[[M, B], Tensor]
    """The logits of a batch's labels, of a model and the batch."""
    start_decoding: Callable[[M, torch.device, Sequence[S], int], Decoding]
    """The state in which samples are generated."""
    hugging_face: dict[str, HuggingFaceModel]
    """How a Hugging Face model becomes a base, by its model_type."""


AnyFamily: TypeAlias = Family[Any, Any, Any, Any]
"""Whichever family a base belongs to: that its own parts fit each other is checked where it is defined."""
