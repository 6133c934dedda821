# SPDX-License-Identifier: Apache-2.0
"""Settings of bottleneck adapters, with the defaults of NeMo 1.20."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nemo_launcher.adapters.registry import AdapterMethod, register
from nemo_launcher.adapters.settings import (
    InitMethod,
    LearningRates,
    Placement,
    Probability,
    Settings,
    Split,
    Wrong,
    divided,
)
from nemo_launcher.adapters.sites import Site
from nemo_launcher.config.sections.common import Count
from nemo_launcher.megatron.sizes import LayerSizes


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings(Settings):
    """The settings of both types of bottleneck adapters."""

    COMPUTED: ClassVar[tuple[str, ...]] = ("adapter_dim", "norm_position")
    ALIASES: ClassVar[dict[str, str]] = {"rank": "adapter_dim", "dropout": "adapter_dropout"}
    adapter_dim: Count
    """The width of the bottleneck."""
    adapter_dropout: Probability = 0.0
    """The dropout probability of the adapter's output, in training."""
    norm_position: Literal["pre", "post", "none"] | None = "pre"
    """The layer norm's place: before the first projection or after the second; null and none: no norm."""
    column_init_method: InitMethod = "xavier"
    """The initialization of the first projection."""
    row_init_method: InitMethod = "zero"
    """The initialization of the second projection; with zero, training starts from the frozen model's output."""
    norm_type: Literal["mixedfusedlayernorm", "layernorm"] = "mixedfusedlayernorm"
    """NeMo's name of the norm's kernel; both values compute the same."""

    @property
    def has_norm(self) -> bool:
        """Whether the adapter has a layer norm."""
        return self.norm_position in ("pre", "post")

    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Return the number of parameters: two projections, and the weight and bias of the norm."""
        return 2 * sizes.hidden_size * (self.adapter_dim + self.has_norm)

    def kept_elements(self, site: Site, sizes: LayerSizes) -> int:
        """Return those of the norm's input and output, the bottleneck before and after SiLU, and dropout's mask."""
        return sizes.hidden_size * (1 + self.has_norm + (self.adapter_dropout > 0)) + 2 * self.adapter_dim

    def computed(self) -> dict[str, object]:
        """Return the settings of COMPUTED, with None for both ways to write "no norm"."""
        return super().computed() | {"norm_position": self.norm_position if self.has_norm else None}

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return a problem if ranks cannot split the bottleneck evenly."""
        return divided("adapter_dim", self.adapter_dim, tensor_parallel_size)


def _placements(splits: dict[str, Split]) -> tuple[Placement, ...]:
    sites = {"adapter_1": Site.ATTENTION_OUTPUT, "adapter_2": Site.MLP_OUTPUT}
    return tuple(Placement(name, site, splits) for name, site in sites.items())


@dataclass(frozen=True, kw_only=True)
class ParallelAdapterSettings(BottleneckSettings):
    """`type: parallel_adapter`: NeMo's ParallelLinearAdapter."""

    LEARNING_RATES: ClassVar[LearningRates] = LearningRates(few=1.5e-3, many=3e-4)
    PLACEMENTS: ClassVar[tuple[Placement, ...]] = _placements(
        {"linear_in.weight": Split(0), "linear_out.weight": Split(1)}
    )

    EXAMPLE: ClassVar[dict[str, object]] = {"type": "parallel_adapter", "adapter_dim": 4}

    type: Literal["parallel_adapter"]
    """Selects the method."""


@dataclass(frozen=True, kw_only=True)
class LinearAdapterSettings(BottleneckSettings):
    """`type: linear_adapter`: NeMo's LinearAdapter, with fixed initialization and replicated on every rank."""

    LEARNING_RATES: ClassVar[LearningRates] = LearningRates(few=1.5e-3, many=3e-4)
    PLACEMENTS: ClassVar[tuple[Placement, ...]] = _placements({})

    EXAMPLE: ClassVar[dict[str, object]] = {"type": "linear_adapter", "adapter_dim": 4}

    type: Literal["linear_adapter"]
    """Selects the method."""

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return problems for the initialization keys too, which NeMo's layer does not read."""
        what = "has no effect: the initialization of linear_adapter is fixed"
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
