# SPDX-License-Identifier: Apache-2.0
"""The settings of bottleneck adapters. Their defaults are NeMo 1.20's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nemo_launcher.adapters.registry import AdapterMethod, register
from nemo_launcher.adapters.settings import InitMethod, Placement, Probability, Settings, Split, Wrong, divided
from nemo_launcher.adapters.sites import LayerSizes, Site
from nemo_launcher.config.sections.common import Count


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings(Settings):
    """What both types have."""

    COMPUTED: ClassVar[tuple[str, ...]] = ("adapter_dim", "norm_position")
    OTHER_WORDS: ClassVar[dict[str, str]] = {"rank": "adapter_dim", "dropout": "adapter_dropout"}
    adapter_dim: Count
    """Width of the bottleneck."""
    adapter_dropout: Probability = 0.0
    """Probability, in training, that an element of the adapter's result is dropped."""
    norm_position: Literal["pre", "post", "none"] | None = "pre"
    """A layer norm before the first projection, or behind the second one; null and none: no norm."""
    column_init_method: InitMethod = "xavier"
    """Initial weights of the first projection."""
    row_init_method: InitMethod = "zero"
    """Initial weights of the second projection; zero starts as the frozen model."""
    norm_type: Literal["mixedfusedlayernorm", "layernorm"] = "mixedfusedlayernorm"
    """NeMo's name of the norm's kernel; both compute the same."""

    @property
    def has_norm(self) -> bool:
        """Whether there is a layer norm."""
        return self.norm_position in ("pre", "post")

    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Two projections, and the weight and bias of a norm."""
        return 2 * sizes.hidden_size * (self.adapter_dim + self.has_norm)

    def computed(self) -> dict[str, Any]:
        """No norm is None, however it is written."""
        return super().computed() | {"norm_position": self.norm_position if self.has_norm else None}

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return what is wrong: ranks share the bottleneck."""
        return divided("adapter_dim", self.adapter_dim, tensor_parallel_size)


def _placements(splits: dict[str, Split]) -> tuple[Placement, ...]:
    sites = {"adapter_1": Site.ATTENTION_OUTPUT, "adapter_2": Site.MLP_OUTPUT}
    return tuple(Placement(name, site, splits) for name, site in sites.items())


@dataclass(frozen=True, kw_only=True)
class ParallelAdapterSettings(BottleneckSettings):
    """`type: parallel_adapter`: NeMo's ParallelLinearAdapter."""

    PLACEMENTS: ClassVar[tuple[Placement, ...]] = _placements(
        {"linear_in.weight": Split(0), "linear_out.weight": Split(1)}
    )

    EXAMPLE: ClassVar[dict[str, Any]] = {"type": "parallel_adapter", "adapter_dim": 4}

    type: Literal["parallel_adapter"]
    """Chooses the method."""


@dataclass(frozen=True, kw_only=True)
class LinearAdapterSettings(BottleneckSettings):
    """`type: linear_adapter`: NeMo's LinearAdapter, which has initial weights of its own and is on every rank whole."""

    PLACEMENTS: ClassVar[tuple[Placement, ...]] = _placements({})

    EXAMPLE: ClassVar[dict[str, Any]] = {"type": "linear_adapter", "adapter_dim": 4}

    type: Literal["linear_adapter"]
    """Chooses the method."""

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return what is wrong: NeMo's layer reads neither of the keys for initial weights."""
        what = "has no effect: linear_adapter has initial weights of its own"
        fields = BottleneckSettings.__dataclass_fields__
        return super().wrong(tensor_parallel_size) + [
            Wrong(name, f"{getattr(self, name)!r} {what}", fields[name].default)
            for name in ("column_init_method", "row_init_method")
            if getattr(self, name) != fields[name].default
        ]


_LAYER = "nemo_launcher.adapters.methods.bottleneck.layer"

register(
    AdapterMethod(
        settings=ParallelAdapterSettings,
        layer=f"{_LAYER}:parallel_adapter",
        title="adapters",
        scheme="adapter",
    )
)
register(AdapterMethod(settings=LinearAdapterSettings, layer=f"{_LAYER}:linear_adapter", title="adapters"))
