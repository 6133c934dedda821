# SPDX-License-Identifier: Apache-2.0
"""Adapters in the upper layers of a tiny model, below which hidden states can be stored."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_launcher.adapters import registry
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.cache import FOLDER_NAME
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.megatron.partial_stack import first_adapted_layer
from nemo_launcher.training.base_setup import training_layout
from nemo_launcher.training.hidden_cache import SUFFIX
from nemo_launcher.training.loading import BatchLoader, make_loaders
from nemo_launcher.training.step import forward_backward
from tests.engine import randomize
from tests.jobs import job_config, loaded
from tests.methods import METHODS, model_section


def upper_adapters(base: Base, method: str, first: Mapping[str, int]) -> AdapterSet:
    """Return adapters in the layers of each stack from `first` (by the stack's name) on, counted from 0."""
    counts = {name: shape.num_layers for name, shape in base.family.stack_shapes(base.shape).items()}
    layers = {name: "none" if first[name] == count else f"{first[name]}-{count - 1}" for name, count in counts.items()}
    config = model_section(method)
    block = registry.method_of(config).block
    chosen = {"layers": layers if len(layers) > 1 else next(iter(layers.values()))}
    return AdapterSet(base.model, base.shape, config | {block: config.get(block, {}) | chosen})


def first_layer(base: Base) -> int:
    """Return the first adapted layer of the stack whose hidden states are stored."""
    stacks = {stack.name: stack for stack in base.family.stacks(base.model, base.shape)}
    return first_adapted_layer(stacks[base.family.hidden.stack].layers)


class Setting:
    """A base with adapters in upper layers, its samples, and the loaders of its batches."""

    def __init__(
        self, path: Path, folder: Path, *, first: Mapping[str, int] | None = None, method: str = "", **options: Any
    ) -> None:
        self.base: Base = load_base(path, **options)
        self.folder = folder
        first = first or {"decoder": 2}
        method = method or METHODS[0]
        self.adapters = upper_adapters(self.base, method, first)
        randomize(self.adapters)
        self.ran: list[int] = []
        stack = getattr(self.base.model, self.base.family.hidden.stack)
        for number, layer in enumerate(stack.layers):
            layer.register_forward_pre_hook(lambda *_, number=number: self.ran.append(number))

    def loaders(
        self, train: Sequence[Any], validation: Sequence[Any], *, cached: bool = True, **changes: Any
    ) -> list[BatchLoader]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        keys = {"model.data.cache_hidden": cached, "model.data.shuffle": False}
        keys |= {"model.global_batch_size": 100, "model.micro_batch_size": 100}
        keys |= {f"model.{key.replace('__', '.')}": value for key, value in changes.items()}
        settings = loaded(job_config(self.folder / "base.nemo", data, self.folder, keys)).section.model
        layout = training_layout(self.base, settings, self.adapters.method.name, 0.0, None)
        self.ran.clear()
        return make_loaders(self.base, settings, layout, train, validation, self.folder / "results")

    def gradients(self, loader: BatchLoader) -> list[tuple[Tensor, list[Tensor | None]]]:
        """Return loss and gradients of each global batch."""
        found = []
        for batch in loader:
            for parameter in self.adapters.parameters():
                parameter.grad = None
            loss = forward_backward(self.base.model, batch.to(self.base.device), backward=True)
            found.append((loss, [parameter.grad for parameter in self.adapters.parameters()]))
        return found

    def files(self, where: str = f"data/{FOLDER_NAME}") -> list[Path]:
        return sorted((self.folder / where).glob(f"*{SUFFIX}"))


def sorted_tree(seed: int = 0) -> list[GPTSample]:
    """Return samples in the order in which their hidden states are computed.

    All that they share is long enough to be computed once in a row too.
    """
    generator = random.Random(seed)

    def draw(first: int, count: int) -> list[int]:
        return [first, *(generator.randrange(3, 300) for _ in range(count - 1))]

    samples = [GPTSample(draw(9, 30), 20, {}, "")]
    for trunk in (draw(10, 24), draw(11, 17)):
        for branch in (draw(12, 20), draw(13, 18)):
            samples += [GPTSample(trunk + branch + draw(leaf, 4 + leaf), 36, {}, "") for leaf in (3, 4, 5)]
    return sorted(samples, key=lambda sample: sample.input_ids)
