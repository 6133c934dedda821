# SPDX-License-Identifier: Apache-2.0
"""What the settings of every adapter method have in common. Imports no torch."""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from nemo_launcher.adapters.sites import LayerSizes, Site
from nemo_launcher.config.constraints import Bounds
from nemo_launcher.config.load import load_checked
from nemo_launcher.config.schema import check
from nemo_launcher.errors import Problem, UserError

Own = TypeVar("Own", bound="Settings")
WHERE = "model.adapter_tuning"
Probability = Annotated[float, Bounds(minimum=0, below=1, example=0.1)]
InitMethod = Literal["xavier", "zero", "normal"]
"""NeMo's names for the initial weights of a linear layer: see adapters/linear.py."""


@dataclass(frozen=True, slots=True)
class Split:
    """How tensor-parallel ranks share a tensor of an adapter."""

    dimension: int
    """The dimension that is cut."""
    has_gate: bool = False
    """In a gated feed-forward it is [gate | up], and a rank has its part of each."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One adapter of a method in each layer."""

    name: str
    """What NeMo calls it in a state dict."""
    site: Site
    """Where it acts; a layer that lacks the site has no such adapter."""
    splits: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    """Which tensors tensor-parallel ranks share; every rank has all of the others."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """A setting that fits the schema and is still wrong."""

    key: str
    """The setting."""
    what: str
    """What is wrong with it."""
    value: Any
    """What to write instead."""


@dataclass(frozen=True, kw_only=True)
class Settings(abc.ABC):
    """The settings of a method: the keys of `model.adapter_tuning`. A method's own derive from it."""

    PLACEMENTS: ClassVar[tuple[Placement, ...]] = ()
    """Every adapter that the method can have in a layer."""
    COMPUTED: ClassVar[tuple[str, ...]] = ()
    """The settings that decide what a trained adapter computes; training may go on with others changed."""
    EXAMPLE: ClassVar[Mapping[str, Any]] = {}
    """Small settings that use all of the method; the tests of every method run with them."""
    STARTS_AS_BASE: ClassVar[bool] = True
    """Whether new adapters with the settings of EXAMPLE change nothing."""
    OTHER_WORDS: ClassVar[Mapping[str, str]] = {}
    """What other programs call a setting -> the setting."""

    @classmethod
    def from_block(cls: type[Own], block: Mapping[str, object] | None, where: str = WHERE) -> Own:
        """Read the block of a job or an archive. Raises UserError with all that is wrong in it.

        Keys that are no settings of the method are not looked at: NeMo's archives hold keys of their own.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in (block or {}).items() if key in names}
        problems = check(known, cls, where)
        if problems:
            raise UserError(problems)
        return load_checked(known, cls).section

    def placements(self) -> tuple[Placement, ...]:
        """Return the method's adapters in each layer, with these settings."""
        return self.PLACEMENTS

    @abc.abstractmethod
    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Return how many numbers the adapter at a site trains, over all tensor-parallel ranks."""

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return the settings that do not go with each other or with the ranks that share a layer."""
        return []

    def computed(self) -> dict[str, Any]:
        """Return the settings of COMPUTED, one value for all that compute the same."""
        return {name: getattr(self, name) for name in self.COMPUTED}

    @classmethod
    def splits(cls, name: str) -> Mapping[str, Split]:
        """Return how tensor-parallel ranks share the tensors of the adapters of a name."""
        return next((placement.splits for placement in cls.PLACEMENTS if placement.name == name), {})


def trainable_parameters(settings: Settings, stacks: Mapping[str, tuple[int, LayerSizes, bool]]) -> int:
    """Return how many numbers a method trains in a model.

    stacks: of each stack the number of its layers, their sizes, and whether they have cross-attention.
    """
    return sum(
        num_layers * settings.num_parameters(placement.site, sizes)
        for num_layers, sizes, has_cross_attention in stacks.values()
        for placement in settings.placements()
        if has_cross_attention or not placement.site.is_cross
    )


def divided(key: str, size: int, ranks: int) -> list[Wrong]:
    """Return what is wrong with a size that tensor-parallel ranks must share evenly."""
    if size % ranks == 0:
        return []
    return [Wrong(key, f"{size} does not divide over tensor_model_parallel_size {ranks}", -(-size // ranks) * ranks)]


def changed_settings(earlier: Settings, asked: Settings, source: str) -> list[Problem]:
    """Return the settings by which an adapter of `source` computes something else than the one that is asked for."""
    old, new = earlier.computed(), asked.computed()
    kinds = type_of(earlier), type_of(asked)
    if kinds[0] != kinds[1]:
        old, new = {"type": kinds[0]}, {"type": kinds[1]}
    return [
        Problem(
            f"{WHERE}.{key}",
            f"is {_shown(new[key])}, the adapter in {source} has {_shown(old[key])}",
            f"{WHERE}.{key}={_shown(old[key])}, or leave restore_path out"
            if "ia3" not in kinds
            else "name an adapter of this method, or leave restore_path out",
        )
        for key in old
        if old[key] != new[key]
    ]


def type_of(settings: Settings | type[Settings]) -> str:
    """Return the value of `type` that chooses these settings."""
    kind = settings if isinstance(settings, type) else type(settings)
    name: str = typing.get_args(typing.get_type_hints(kind)["type"])[0]
    return name


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)
