# SPDX-License-Identifier: Apache-2.0
"""Parallel sizes of a model, and checks that ranks can split it evenly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Protocol

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.values import Section, whole

MAX_LOGITS = 2**25
"""The number of logits computed at a time, or those of one token if they are more; 384 MiB with LOGIT_BYTES."""

LOGIT_BYTES = 12
"""Bytes per logit at the start of the backward pass: log-probability and two gradients in fp32 (families.head)."""


def tokens_with_logits(vocabulary: float) -> int:
    """Return the number of tokens whose logits are in memory at a time."""
    return max(1, int(MAX_LOGITS / vocabulary))


class LayerSizes(Protocol):
    """The sizes of a stack of layers in the complete model."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_query_groups(self) -> int: ...
    @property
    def kv_channels(self) -> int: ...
    @property
    def gated(self) -> bool: ...


def described_sizes(stacks: Mapping[str, LayerSizes]) -> str:
    """Return the sizes of a model's stacks as a text that is the same in every process."""
    texts = []
    for name, sizes in sorted(stacks.items()):
        heads = f"{sizes.num_attention_heads}/{sizes.num_query_groups} heads of {sizes.kv_channels}"
        ffn = f"{sizes.ffn_hidden_size}{' gated' if sizes.gated else ''}"
        texts.append(f"{name} of {sizes.num_layers} layers, hidden {sizes.hidden_size}, {heads}, feed-forward {ffn}")
    return "; ".join(texts)


class ParallelSection(Protocol):
    """The keys of the parallel sizes, common to training and evaluation."""

    @property
    def tensor_model_parallel_size(self) -> int: ...
    @property
    def pipeline_model_parallel_size(self) -> int: ...
    @property
    def pipeline_model_parallel_split_rank(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """The parallel sizes of a model."""

    tensor: int = 1
    """The number of tensor-parallel ranks."""
    pipeline: int = 1
    """The number of pipeline stages."""
    split_rank: int | None = None
    """The first stage of a T5's decoder; None or 0: the middle stage."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks also split the tokens outside attention and feed-forward; needs several of them."""

    @classmethod
    def of(cls, section: ParallelSection, *, sequence_parallel: bool = False) -> ParallelSizes:
        """Return the sizes in a job's section."""
        return cls(
            section.tensor_model_parallel_size,
            section.pipeline_model_parallel_size,
            section.pipeline_model_parallel_split_rank,
            sequence_parallel,
        )

    def check(self, world: int) -> None:
        """Raise UserError if the sizes contradict each other or the number of processes."""
        problems = []
        if world % (self.tensor * self.pipeline):
            what = (
                f"{world} process(es) do not divide into model replicas of {self.tensor} (tensor) x {self.pipeline} "
                "(pipeline)"
            )
            fix = f"start a multiple of {self.tensor * self.pipeline}"
            problems.append(Problem("tensor_model_parallel_size", what, fix))
        if problems:
            raise UserError(problems)


ONE_RANK = ParallelSizes()


@dataclass(frozen=True, slots=True)
class StackStages:
    """The pipeline stages of one stack of layers."""

    first: int
    """The first stage."""
    stop: int
    """The end of the stages (exclusive)."""

    def __contains__(self, stage: int) -> bool:
        return self.first <= stage < self.stop

    @property
    def last(self) -> int:
        """The stage with the stack's last layer."""
        return self.stop - 1

    @property
    def count(self) -> int:
        """The number of stages."""
        return self.stop - self.first


def encoder_and_decoder_stages(sizes: ParallelSizes) -> tuple[StackStages, StackStages]:
    """Return the stages of a T5's encoder and decoder. Raises UserError if the split rank leaves either without one."""
    if sizes.pipeline == 1:
        return StackStages(0, 1), StackStages(0, 1)
    split = sizes.split_rank or sizes.pipeline // 2
    if not 0 < split < sizes.pipeline:
        what = (
            f"is {split}: with {sizes.pipeline} pipeline stages the decoder starts at stage 1 to {sizes.pipeline - 1}"
        )
        raise UserError(Problem("pipeline_model_parallel_split_rank", what, "omit it to split in the middle"))
    return StackStages(0, split), StackStages(split, sizes.pipeline)


def check_division(shape: LayerSizes, *, tensor: int, pipeline: int, stack: str = "model") -> None:
    """Raise UserError unless ranks can split heads and feed-forward evenly, and stages the layers."""
    divided = {
        "num_attention_heads": (shape.num_attention_heads, tensor, "tensor"),
        "num_query_groups": (shape.num_query_groups, tensor, "tensor"),
        "ffn_hidden_size": (shape.ffn_hidden_size, tensor, "tensor"),
        "num_layers": (shape.num_layers, pipeline, "pipeline"),
    }
    common = {
        kind: gcd(*(size for size, _, other in divided.values() if other == kind)) for kind in ("tensor", "pipeline")
    }
    problems = [
        Problem(
            f"{kind}_model_parallel_size",
            f"{ranks} does not divide the {stack}'s {name} {size}",
            f"use a divisor of {common[kind]}, such as {gcd(ranks, common[kind])}",
        )
        for name, (size, ranks, kind) in divided.items()
        if size % ranks
    ]
    if problems:
        raise UserError(problems)


_SIZES = ("num_layers", "hidden_size", "num_attention_heads")
_OPTIONAL_SIZES = (
    "ffn_hidden_size",
    "num_query_groups",
    "kv_channels",
    "max_position_embeddings",
    "encoder_seq_length",
)


def size_problems(config: Mapping[str, object], source: str) -> list[Problem]:
    """Return a Problem for each size that is missing or not a positive integer."""
    found = [
        Problem(f"{source}: {key}", "is absent from the base's model_config.yaml")
        for key in _SIZES
        if config.get(key) is None
    ]
    for key in _SIZES + _OPTIONAL_SIZES:
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not a size", "use a positive integer"))
    return found


def head_problems(config: Section, source: str) -> list[Problem]:
    """Return the problems between the sizes of attention, which are valid by themselves."""
    heads, groups = whole(config, "num_attention_heads") or 1, whole(config, "num_query_groups")
    hidden = whole(config, "hidden_size") or 0
    found = []
    if not config.get("kv_channels") and hidden % heads:
        what = f"{hidden} does not divide by num_attention_heads {heads}"
        found.append(Problem(f"{source}: hidden_size", what, "set kv_channels"))
    if groups and heads % groups:
        found.append(Problem(f"{source}: num_query_groups", f"{groups} does not divide num_attention_heads {heads}"))
    return found
