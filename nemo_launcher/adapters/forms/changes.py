# SPDX-License-Identifier: Apache-2.0
"""What an adapter changes in the linear layers of a Hugging Face model: the common form of PEFT and of folding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet, AdapterState, Place
from nemo_launcher.checkpoint.language_model import LANGUAGE_MODEL_OF
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.described import DescribedModel, HuggingFaceForm
from nemo_launcher.families.hf_table import Entry, Module, StackTable
from nemo_launcher.families.layer_shape import LayerShape
from nemo_launcher.files.values import below, text


@dataclass(frozen=True, slots=True)
class Scaled:
    """A vector that scales the input or the output of a linear layer."""

    factors: Tensor
    """[in] or [out], fp32."""
    on_input: bool
    """Whether it scales the input."""

    @property
    def is_one(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.factors == 1).all())

    def in_weight(self, weight: Tensor) -> Tensor:
        """Return a weight, [out, in], with the vector in it."""
        return weight * (self.factors if self.on_input else self.factors[:, None])

    def in_bias(self, bias: Tensor) -> Tensor:
        """Return a bias, [out], with the vector in it."""
        return bias if self.on_input else bias * self.factors


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update of a weight by scale * second @ first."""

    first: Tensor
    """[r, in], fp32."""
    second: Tensor
    """[out, r], fp32."""
    scale: float
    """The factor of the product."""

    def in_weight(self, weight: Tensor) -> Tensor:
        """Return a weight, [out, in], with the update in it."""
        return weight + self.scale * (self.second @ self.first)

    def in_bias(self, bias: Tensor) -> Tensor:
        """Return a bias, [out], which stays as it is."""
        return bias


Changes = dict[str, Scaled | LowRank]
"""The change of each linear layer, by its name in the Hugging Face model."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A linear layer of a Hugging Face model."""

    entry: Entry
    """The module here that it is, or is a part of."""
    outputs: int
    """The number of its outputs."""
    inputs: int
    """The number of its inputs."""


@dataclass(frozen=True, slots=True)
class Target:
    """A base as a Hugging Face model."""

    model: DescribedModel
    """The base."""
    form: HuggingFaceForm
    """Its form."""

    @property
    def whole(self) -> str | None:
        """The multi-modal architecture that the base is the language model of; None if of none."""
        return text(below(self.model.base.config, "converted_from"), LANGUAGE_MODEL_OF)

    def stack(self, name: str) -> tuple[StackTable, LayerShape]:
        """Return the table and the shape of a stack."""
        return self.form.table.stack(name), self.model.stacks[name]

    def linear_layers(self) -> dict[str, LinearLayer]:
        """Return all modules with a matrix, by their names in the Hugging Face model."""
        found = {}
        for entry in self.form.table.entries(self.model.stacks):
            shape = self.model.weights.shape(f"{entry.ours}.weight") if self._has_matrix(entry) else ()
            if len(shape) == 2:
                for name, outputs in zip(entry.theirs, entry.module.widths(entry.sizes, shape[0]), strict=True):
                    found[name] = LinearLayer(entry, outputs, shape[1])
        return found

    def _has_matrix(self, entry: Entry) -> bool:
        return f"{entry.ours}.weight" in self.model.base.sums

    def module(self, place: Place, found: Module | None) -> Module:
        """Return the entry of the table for a place. Raises UserError if the architecture has no such module."""
        if found is None:
            kind, site = self.form.layout.kind, f"{place.stack}.layers.{place.layer}.{place.site.target}"
            raise UserError(Problem(site, f"{kind} has no linear layer that an adapter here could be part of"))
        return found


def adapters_of(model: DescribedModel, config: Mapping[str, object]) -> AdapterSet:
    """Return the places and shapes of an adapter's modules in a base, without values."""
    return AdapterSet(model.base.model, model.base.shape, config, attached=False)


def whole_state(adapters: AdapterSet, tensors: Mapping[str, Mapping[str, Tensor]]) -> AdapterState:
    """Return a state in the order of the modules, with contiguous tensors."""
    return {key: {name: tensor.contiguous() for name, tensor in tensors[key].items()} for key in adapters.adapters}
