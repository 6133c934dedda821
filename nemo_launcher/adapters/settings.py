# SPDX-License-Identifier: Apache-2.0
"""The base class of all adapter methods' settings. Imports no torch."""

from __future__ import annotations

import abc
import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from nemo_launcher.adapters.sites import Site, absent_sites
from nemo_launcher.config.constraints import Bounds
from nemo_launcher.config.layers import WithLayers, chosen_layers, comparable, range_problems, stack_problems
from nemo_launcher.config.load import load_checked
from nemo_launcher.config.overrides import hydra_value, override
from nemo_launcher.config.schema import check
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.megatron.sizes import LayerSizes

Own = TypeVar("Own", bound="Settings")
BLOCK = "adapter_tuning"
"""The section whose `type` selects a method."""
WHERE = f"model.{BLOCK}"
WITHOUT_BLOCK = "ia3"
"""The method of a configuration without `adapter_tuning`, as in NeMo 1.20."""
FEW_STEPS = 200
"""The number of optimizer steps up to which a training has few."""
OPTIMIZER_BYTES = 12
"""Bytes per adapter parameter: the weight and Adam's two moments in fp32."""
Probability = Annotated[float, Bounds(minimum=0, below=1, example=0.1)]
InitMethod = Literal["xavier", "zero", "normal"]
"""NeMo's names of initialization methods; see adapters/linear.py."""


@dataclass(frozen=True, slots=True)
class Split:
    """The split of an adapter's tensor over tensor-parallel ranks."""

    dimension: int
    """The dimension that is split."""
    has_gate: bool = False
    """In a gated feed-forward the dimension is [gate | up], and each rank has a part of both."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One adapter of a method in each layer."""

    name: str
    """NeMo's name of it in a state dict."""
    site: Site
    """Where it acts; layers without the site have no such adapter."""
    splits: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    """The tensors that tensor-parallel ranks split; all others are replicated."""


@dataclass(frozen=True, slots=True)
class LearningRates:
    """The usual learning rates of a method, which `model.optim.lr=auto` stands for."""

    few: float
    """For few steps, as benchmarks/learning_rates.py found it."""
    many: float
    """For many steps, from publications."""

    def of(self, steps: int) -> float:
        """Return the rate for a training with so many optimizer steps."""
        return self.few if steps <= FEW_STEPS else self.many


@dataclass(frozen=True, slots=True)
class Wrong:
    """A setting that matches the schema but is invalid."""

    key: str
    """The setting's name."""
    what: str
    """What is wrong with it."""
    value: object
    """A valid value to suggest."""


@dataclass(frozen=True, kw_only=True)
class Settings(WithLayers, abc.ABC):
    """The settings of a method: the keys of `model.adapter_tuning`. Each method derives its own class."""

    PLACEMENTS: ClassVar[tuple[Placement, ...]] = ()
    """All adapters that the method can have in a layer."""
    COMPUTED: ClassVar[tuple[str, ...]] = ()
    """The settings that determine what a trained adapter computes; the others may change when training resumes."""
    EXAMPLE: ClassVar[Mapping[str, object]] = {}
    """Small settings that use every part of the method, for the conformance tests."""
    IDENTITY_AT_INIT: ClassVar[bool] = True
    """Whether new adapters with the settings of EXAMPLE leave the model's output unchanged."""
    LEARNING_RATES: ClassVar[LearningRates] = LearningRates(few=1e-3, many=3e-4)
    """The method's usual learning rates with Adam."""
    ALIASES: ClassVar[Mapping[str, str]] = {}
    """Names of settings in other programs -> names here."""

    @classmethod
    def from_block(cls: type[Own], block: Mapping[str, object] | None, where: str = WHERE) -> Own:
        """Return the settings in a block of a job or an archive. Raises UserError with all problems in it.

        Unknown keys are ignored: NeMo's archives hold further keys.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in (block or {}).items() if key in names}
        problems = check(known, cls, where)
        if problems:
            raise UserError(problems)
        return load_checked(known, cls).section

    def placements(self) -> tuple[Placement, ...]:
        """Return the method's adapters in each layer for these settings."""
        return self.PLACEMENTS

    @abc.abstractmethod
    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Return the number of trainable parameters of the adapter at a site, over all tensor-parallel ranks."""

    def kept_elements(self, site: Site, sizes: LayerSizes) -> int:
        """Return the elements per token that the adapter at a site keeps for the backward pass; for estimates."""
        return 0

    def chosen_layers(self, stack: str, count: int) -> frozenset[int]:
        """Return the layers of a stack of `count` layers that get adapters, from 0."""
        return chosen_layers(self.layers, stack, count)

    def layer_problems(self, counts: Mapping[str, int], where: str) -> list[Problem]:
        """Return a problem if a base lacks the selected layers. counts: layers of each stack; where: of `layers`."""
        return stack_problems(self.layers, len(counts), where) or range_problems(self.layers, counts, where)

    def expert_problems(self, where: str) -> list[Problem]:
        """Return the settings that a mixture of experts cannot have; where: the section of the settings."""
        return []

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return the settings that contradict each other or cannot be split over the ranks."""
        return []

    def computed(self) -> dict[str, object]:
        """Return the settings of COMPUTED, normalized: equal values compute the same."""
        return {name: getattr(self, name) for name in self.COMPUTED}

    @classmethod
    def splits(cls, name: str) -> Mapping[str, Split]:
        """Return the tensors that tensor-parallel ranks split, for adapters with this name."""
        return next((placement.splits for placement in cls.PLACEMENTS if placement.name == name), {})


def trainable_parameters(settings: Settings, stacks: Mapping[str, LayerSizes], *, has_experts: bool = False) -> int:
    """Return the number of parameters that a method trains in a model.

    stacks: the sizes of each stack; the decoder of two has cross-attention. has_experts: whether layers have several
    feed-forwards.
    """
    count = 0
    for name, sizes in stacks.items():
        absent = absent_sites(has_cross_attention=len(stacks) > 1 and name == "decoder", has_experts=has_experts)
        sites = [placement.site for placement in settings.placements() if placement.site not in absent]
        layers = len(settings.chosen_layers(name, sizes.num_layers))
        count += layers * sum(settings.num_parameters(site, sizes) for site in sites)
    return count


def divided(key: str, size: int, ranks: int) -> list[Wrong]:
    """Return a problem if tensor-parallel ranks cannot split a size evenly."""
    if size % ranks == 0:
        return []
    return [Wrong(key, f"{size} does not divide over tensor_model_parallel_size {ranks}", -(-size // ranks) * ranks)]


def changed_settings(
    earlier: Settings, asked: Settings, counts: Mapping[str, int], block: str, source: str
) -> list[Problem]:
    """Return a Problem for each setting that makes the adapter in `source` compute something else than `asked`.

    counts: the layers of each stack of the base; block: the section of `model` with the settings.
    """
    old, new = ({**one.computed(), "layers": comparable(one.layers, counts)} for one in (earlier, asked))
    kinds = type_of(earlier), type_of(asked)
    if kinds[0] != kinds[1]:
        old, new = {"type": kinds[0]}, {"type": kinds[1]}
    return [
        Problem(
            f"model.{block}.{key}",
            f"is {_shown(new[key])}, but the adapter in {source} has {_shown(old[key])}",
            f"{override(f'model.{block}.{key}', old[key])}, or omit restore_path"
            if key != "type" or WITHOUT_BLOCK not in kinds
            else "use an adapter of this method, or omit restore_path",
        )
        for key in old
        if old[key] != new[key]
    ]


def type_of(settings: Settings | type[Settings]) -> str:
    """Return the value of `type` that selects these settings."""
    return _type_of(settings if isinstance(settings, type) else type(settings))


@functools.cache  # annotations are text, which takes a tenth of a launch to evaluate each time
def _type_of(kind: type[Settings]) -> str:
    name: str = typing.get_args(typing.get_type_hints(kind)["type"])[0]
    return name


def _shown(value: object) -> str:
    return value if isinstance(value, str) else hydra_value(value)
