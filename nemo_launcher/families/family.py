# SPDX-License-Identifier: Apache-2.0
"""The definition of a model family: everything that differs between GPT and T5.

Archives, adapter methods, training, evaluation and scores are common to all families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from nemo_launcher.data.prompt_encoder import PromptSettings, SampleEncoder
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.families.decoding import Decoding
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.hf_layout import HuggingFaceLayout
from nemo_launcher.families.hidden import HiddenStates
from nemo_launcher.families.layer_shape import LayerShape, Shape
from nemo_launcher.families.stacks import Stack
from nemo_launcher.files.values import Section
from nemo_launcher.megatron.attention_path import AttentionPath
from nemo_launcher.megatron.sizes import ParallelSizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from nemo_launcher.data.tokenizers import Tokenizer


M = TypeVar("M", bound=FrozenModel)
H = TypeVar("H", bound=Shape)
S = TypeVar("S", bound=Sample)
B = TypeVar("B", bound=Batch)
M_co = TypeVar("M_co", bound=FrozenModel, covariant=True)
H_co = TypeVar("H_co", bound=Shape, covariant=True)
B_co = TypeVar("B_co", bound=Batch, covariant=True)
H_contra = TypeVar("H_contra", bound=Shape, contravariant=True)
S_contra = TypeVar("S_contra", bound=Sample, contravariant=True)


class HuggingFaceModel(Protocol):
    """The interface of modules that convert one type of Hugging Face model to a base."""

    @property
    def TARGET(self) -> str:
        """NeMo's class in the base's configuration."""

    def nemo_config(self, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Return the model's part of `model_config.yaml`; config: transformers' configuration."""

    def convert_weights(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under our names, one at a time: all of them need not fit into memory."""

    def to_stored(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return some of our weights under the names in archives."""

    def tokenizer_section(self, vocab: Iterable[str]) -> dict[str, object]:
        """Return the family's additions to the configuration's `tokenizer` section."""


class ReadShape(Protocol[H_co]):
    """A function that reads the shape of a base from its configuration."""

    def __call__(self, config: Section, *, vocab_size: int, source: str) -> H_co:
        """Return the shape; vocab_size: rows of the embedding; source: the archive, for messages."""


class Build(Protocol[H_contra, M_co]):
    """A function that creates a frozen model without weights."""

    def __call__(self, shape: H_contra, *, dtype: torch.dtype = ..., sizes: ParallelSizes = ...) -> M_co:
        """Return this rank's part of the model."""


class MakeEncoder(Protocol[H_contra, S]):
    """A function that creates the encoder of records to samples."""

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
        with_choices: bool = False,
    ) -> SampleEncoder[S]:
        """Return the encoder for a training, or with `tokens_to_generate` for inference.

        with_choices: samples have all answer choices of their records; not for inference.
        """


class Pack(Protocol[S_contra, B_co]):
    """A function that packs the samples of a micro-batch."""

    def __call__(self, samples: Sequence[S_contra], *, share_prefix: bool = ...) -> B_co:
        """Return the batch; share_prefix: store common prefixes once, if the family can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Generic[M, H, S, B]):
    """One model family, with matching types of model, shape, samples and batches."""

    name: str
    """The `engine` of a FamilyName (config.families)."""
    title: str
    """The family's name in messages."""
    model_class: type[M]
    """The class of its frozen model."""
    owns_adapter: Callable[[Iterable[str]], bool]
    """Whether an adapter with these state-dict keys belongs to the family."""
    renaming: Callable[[Section], Callable[[str], str | None]]
    """Returns the function that maps stored names to ours (checkpoint.sharding.StoredWeights)."""
    is_gated: Callable[[Section], bool]
    """Whether the first feed-forward matrix is [gate | up]."""
    embedding: str
    """Our name of the token embedding."""
    read_shape: ReadShape[H]
    """Returns the shape, from configuration, embedding rows and archive name."""
    build: Build[H, M]
    """Returns the model for a shape."""
    stacks: Callable[[M, H], list[Stack]]
    """Returns the stacks of layers that can hold adapters, for a model and its shape."""
    stack_shapes: Callable[[H], Mapping[str, LayerShape]]
    """Returns the shapes of the stacks by name."""
    prompt_encoder: MakeEncoder[H, S]
    """Returns the encoder of records to samples."""
    nemo_length: Callable[[int | None], int | None]
    """Returns the number of tokens that NeMo generates, for the adapter's decoder_seq_length.

    NeMo then decodes greedily and ignores `inference`; None if it follows `inference`.
    """
    text: Callable[[Tokenizer, Sequence[int]], str]
    """Returns the text of a prompt or prediction without special tokens."""
    joint: str
    """The text between prompt and prediction in the documented predictions file."""
    pack: Pack[S, B]
    """Packs the samples of a micro-batch into one batch."""
    make_sample: Callable[[list[int], list[int]], S]
    """Returns a sample from the token ids of a prompt and of its answer."""
    shares_prefixes: bool
    """Whether `pack` stores common prefixes once."""
    run: Callable[[M, B], Tensor]
    """Returns what the head reads for a batch's labels, [n, hidden], for a model and the batch."""
    hidden: HiddenStates[M, B]
    """How hidden states below the first adapted layer are computed once."""
    pack_rows: Callable[[Sequence[S], float], RowForest] | None
    """Packs the samples of a micro-batch into a tree of rows with at most a number of tokens each; None if the family
    cannot be executed depth-first."""
    run_row: Callable[[M, B, AttentionPath], Tensor] | None
    """Like `run`, for a row of a tree and the rows that it continues; it stores the row's own keys and values."""
    start_decoding: Callable[[M, torch.device, Sequence[S], int], Decoding]
    """Creates the decoding state of samples."""
    hugging_face: Mapping[str, HuggingFaceModel]
    """The converters of Hugging Face models, by model_type."""
    layouts: Sequence[HuggingFaceLayout[H]]
    """The Hugging Face architectures in which a base can be written, in the order in which they are tried."""
    source_layout: Callable[[Section, str], HuggingFaceLayout[H] | None]
    """Returns the layout of the model that a base was converted from, for the archive's configuration and name."""


AnyFamily: TypeAlias = Family[FrozenModel, Shape, Sample, Batch]
"""A family of any types; the types of each family are checked where it is defined."""
