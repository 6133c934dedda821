# SPDX-License-Identifier: Apache-2.0
"""Injection of a method's adapters into a frozen model; saving and loading their weights under NeMo's names."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nemo_launcher.adapters import splitting
from nemo_launcher.adapters.hooks import attach, has_experts, has_site
from nemo_launcher.adapters.registry import AdapterMethod, method_of, settings_of
from nemo_launcher.adapters.settings import Placement, Settings, Split
from nemo_launcher.adapters.sites import INSIDE_FEED_FORWARD, Site
from nemo_launcher.config.layers import described
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.layer_shape import Shape
from nemo_launcher.families.registry import family_of_model
from nemo_launcher.families.stacks import Stack
from nemo_launcher.files.values import whole
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.packed_weight import any_parameter
from nemo_launcher.megatron.seeded_dropout import SeededDropout
from nemo_launcher.megatron.sizes import LayerSizes

AdapterState = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter acts in a model."""

    stack: str
    """The stack's name in our model."""
    layer: int
    """The number of its layer in the complete model, from 0."""
    site: Site
    """The site in the layer."""


class AdapterSet:
    """All adapters of one method in one model.

    adapters: modules by NeMo's state-dict key, `<path of the layers>.N[.self_attention|.inter_attention|.mlp]:NAME`
    (families.stacks), in the layers that the settings choose. places: where they act, by the same keys. absent: names
    of those that a mixture of experts lacks. Only the adapters' parameters require gradients. attached: False leaves
    the model unchanged, for adapters that are only inspected. Raises UserError if the model lacks a layer that the
    settings choose, or, as a mixture of experts, a projection.
    """

    def __init__(
        self, model: FrozenModel, shape: Shape, config: Mapping[str, object], *, attached: bool = True
    ) -> None:
        self.method: AdapterMethod = method_of(config)
        self.settings: Settings = settings_of(config)
        self.adapters: dict[str, nn.Module] = {}
        self.places: dict[str, Place] = {}
        self._shared: dict[str, _Shared] = {}
        self._places: list[tuple[TransformerLayer, Placement, nn.Module]] = []
        self._detach: list[Callable[[], object]] = []
        self._model = model
        self.absent: list[str] = []
        self._left_out: dict[str, frozenset[int]] = {}  # path of a stack's layers -> the layers without adapters
        self.sequence_parallel = bool(getattr(getattr(model, "config", None), "sequence_parallel", False))
        seed = whole(config, "seed") or 0
        stacks = family_of_model(model).stacks(model, shape)
        counts = {stack.name: stack.shape.num_layers for stack in stacks}
        block = f"model.{self.method.block}"
        problems = self.settings.layer_problems(counts, f"{block}.layers")
        if any(has_experts(layer) for stack in stacks for layer in stack.layers):
            problems += self.settings.expert_problems(block)
            inner = (placement for placement in self.settings.placements() if placement.site in INSIDE_FEED_FORWARD)
            self.absent = [placement.name for placement in inner]
        if problems:
            raise UserError(problems)
        self._ends_backward = not self._trains_earlier(stacks)
        for number, stack in enumerate(stacks):
            chosen = self.settings.chosen_layers(stack.name, stack.shape.num_layers)
            self._left_out[stack.path_for(self.method.name)] = frozenset(range(stack.shape.num_layers)) - chosen
            for layer in stack.layers:
                if layer.layer_number - 1 in chosen:
                    # A seed per adapter makes its initial weights independent of the other layers and the stages.
                    self._adapt(layer, stack, seed + 1_000_000 * number + 100 * layer.layer_number)
        if attached:
            self.attach()

    def attach(self) -> None:
        """Let the model use the adapters from now on. It must have no others."""
        self._model.ends_backward = self._ends_backward
        self._detach = [attach(layer, where.site, where.name, adapter) for layer, where, adapter in self._places]

    def detach(self) -> None:
        """Leave the model as it was without the adapters, which keep their weights."""
        for detach in self._detach:
            detach()
        self._detach = []
        for layer, _, _ in self._places:
            layer.has_adapters = False
        self._model.ends_backward = False

    def _adapt(self, layer: TransformerLayer, stack: Stack, seed: int) -> None:
        device = any_parameter(layer).device
        path = f"{stack.path_for(self.method.name)}.{layer.layer_number - 1}"
        for number, placement in enumerate(self.settings.placements()):
            if not has_site(layer, placement.site):
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + number)
                adapter = _new_adapter(self.method.layer, self.settings, placement.site, stack.shape).to(device)
            vars(adapter)["sequence_parallel"] = self.sequence_parallel
            for module in adapter.modules():
                if isinstance(module, SeededDropout):
                    module.number = seed + number
            self._places.append((layer, placement, adapter))
            key = _state_key(path, placement)
            self.adapters[key] = adapter
            self.places[key] = Place(stack.name, layer.layer_number - 1, placement.site)
            self._shared[key] = _Shared(placement.splits, stack.shape.gated)

    def _trains_earlier(self, stacks: Sequence[Stack]) -> bool:
        """Return whether earlier pipeline stages than this one have adapters. Stages hold the stacks in order."""
        own = {stack.name: [layer.layer_number - 1 for layer in stack.layers] for stack in stacks}
        last = max((number for number, stack in enumerate(stacks) if own[stack.name]), default=-1)
        for stack in stacks[: last + 1]:
            below = min(own[stack.name], default=stack.shape.num_layers)
            if any(number < below for number in self.settings.chosen_layers(stack.name, stack.shape.num_layers)):
                return True
        return False

    def parameters(self) -> list[nn.Parameter]:
        """Return all trainable parameters, in layer order."""
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    def num_parameters(self) -> int:
        """Return the number of trainable parameters over all ranks, which must all call this."""
        shapes = {key: self._whole_shapes(key) for key in self.adapters}
        return sum(math.prod(shape) for tensors in parallel.merge_stages(shapes).values() for shape in tensors.values())

    def train(self, mode: bool = True) -> None:
        """Set train or eval mode of the adapters, which switches their dropout."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    def sum_gradients(self) -> None:
        """Sum the gradients over all ranks, which must all call this."""
        parallel.sum_over_replicas(self.parameters())
        if self.sequence_parallel:
            parallel.sum_over_tensor_ranks(self._replicated_parameters())

    def _replicated_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that tensor-parallel ranks replicate.

        Under sequence parallelism each rank computes their gradients from its own tokens.
        """
        return [
            parameter
            for key, adapter in self.adapters.items()
            for name, parameter in adapter.named_parameters()
            if name not in self._shared[key].splits
        ]

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm over all ranks is at most `max_norm`; return the norm before, []."""
        norm = self.gradient_norm()
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), max_norm, norm)
        return norm

    def gradient_norm(self) -> Tensor:
        """Return the norm of the gradients over all ranks, []; all ranks must call this."""
        split: list[Tensor] = []
        replicated: list[Tensor] = []
        for key, adapter in self.adapters.items():
            for name, parameter in adapter.named_parameters():
                if parameter.grad is not None:
                    (split if name in self._shared[key].splits else replicated).append(parameter.grad)
        return parallel.total_norm(split, replicated)

    def state_dict(self) -> AdapterState:
        """Return the complete weights in NeMo's format, a dict of tensors per adapter; all ranks must call this.

        Tensors are gathered over tensor-parallel ranks and pipeline stages, so the result does not depend on parallel
        sizes.
        """
        return parallel.merge_stages(self.gather({key: adapter.state_dict() for key, adapter in self.adapters.items()}))

    def gather(self, state: AdapterState) -> AdapterState:
        """Gather the tensors that tensor-parallel ranks split; `state` has the names and shapes of the adapters.

        The result is in main memory, so that files and other ranks do not refer to this rank's GPU.
        """
        return {
            key: {name: self._shared[key].whole(name, tensor.detach()).cpu() for name, tensor in tensors.items()}
            for key, tensors in state.items()
        }

    def part(self, state: Mapping[str, Mapping[str, Tensor]]) -> AdapterState:
        """Return this rank's part of a complete state: its layers and its slice of each tensor."""
        return {
            key: {name: self._shared[key].part(name, tensor) for name, tensor in state[key].items()}
            for key in self.adapters
        }

    def whole_shape(self, key: str, name: str) -> tuple[int, ...]:
        """Return the shape of an adapter's tensor before it is split over tensor-parallel ranks."""
        return self._whole_shapes(key)[name]

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Load complete weights in NeMo's format. Raises UserError like `check`, before anything is loaded."""
        self.check(state, source)
        for key, tensors in self.part(state).items():
            self.adapters[key].load_state_dict(tensors)

    def check(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Raise UserError if complete weights miss adapters or tensors, have unknown ones, or other shapes."""
        problems = [Problem(f"{source}: {key}", "is absent") for key in sorted(self.adapters.keys() - state.keys())]
        for key in sorted(state.keys() - self.adapters.keys()):
            if self._is_left_out(key):
                chosen = described(self.settings.layers)
                what = f"is in a layer without adapters: {self.method.block}.layers is {chosen}"
                problems.append(Problem(f"{source}: {key}", what))
            elif parallel.pipeline_size() == 1:  # otherwise the layer may be another stage's
                problems.append(Problem(f"{source}: {key}", "has no place in this model"))
        for key in self.adapters.keys() & state.keys():
            own = self._whole_shapes(key)
            theirs = {name: tuple(tensor.shape) for name, tensor in state[key].items()}
            if own != theirs:
                problems.append(Problem(f"{source}: {key}", f"holds {theirs}", f"this model and method need {own}"))
        if problems:
            raise UserError(problems[:10])

    def _is_left_out(self, key: str) -> bool:
        """Return whether a key is of a layer of the model that gets no adapters by the settings."""
        return any(
            key.startswith((f"{path}.{number}.", f"{path}.{number}:"))
            for path, numbers in self._left_out.items()
            for number in numbers
        )

    def _whole_shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for name, tensor in self.adapters[key].state_dict().items():
            shape, split = list(tensor.shape), self._shared[key].splits.get(name)
            if split is not None:
                shape[split.dimension] *= parallel.tensor_size()
            shapes[name] = tuple(shape)
        return shapes


@dataclass(frozen=True, slots=True)
class _Shared:
    """The distribution of one adapter's tensors over tensor-parallel ranks."""

    splits: Mapping[str, Split]
    """The split of each tensor, by its name; tensors without one are replicated."""
    gated: bool
    """Whether the layer has a gated feed-forward."""

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """Return this rank's part of a complete tensor."""
        split = self.splits.get(name)
        return tensor if split is None else splitting.part(tensor, split, gated=self.gated)

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return the complete tensor, gathered from all ranks, which must all call this."""
        split = self.splits.get(name)
        return tensor if split is None else splitting.gather(tensor, split, gated=self.gated)


def _new_adapter(layer: str, settings: Settings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter from the function that `layer` names (registry.AdapterMethod)."""
    module, _, function = layer.partition(":")
    adapter: nn.Module = getattr(importlib.import_module(module), function)(settings, site, sizes)
    return adapter


def _state_key(layer: str, placement: Placement) -> str:
    path = f"{layer}.{placement.site.nemo_path}" if placement.site.nemo_path else layer
    return f"{path}:{placement.name}"
