# SPDX-License-Identifier: Apache-2.0
"""Settings of IA3, which has only its layers: the rest follows from the model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nemo_launcher.adapters.registry import AdapterMethod, register
from nemo_launcher.adapters.settings import LearningRates, Placement, Settings, Split
from nemo_launcher.adapters.sites import Site
from nemo_launcher.config.fields import omitted
from nemo_launcher.megatron.sizes import LayerSizes

_SPLITS = {"scalers": Split(0)}


@dataclass(frozen=True, kw_only=True)
class Ia3Settings(Settings):
    """`ia3_tuning`, the settings of a configuration without `adapter_tuning`."""

    LEARNING_RATES: ClassVar[LearningRates] = LearningRates(few=3e-2, many=5e-3)
    PLACEMENTS: ClassVar[tuple[Placement, ...]] = (
        Placement("key_infused_adapter", Site.KEY, _SPLITS),
        Placement("value_infused_adapter", Site.VALUE, _SPLITS),
        Placement("key_infused_adapter", Site.CROSS_KEY, _SPLITS),
        Placement("value_infused_adapter", Site.CROSS_VALUE, _SPLITS),
        Placement("mlp_infused_adapter", Site.MLP_ACTIVATION, _SPLITS),
    )

    type: Literal["ia3"] = omitted("ia3")
    """Selects the method."""

    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Return one parameter per scaled element."""
        return site.takes.of(sizes)

    def kept_elements(self, site: Site, sizes: LayerSizes) -> int:
        """Return those of a key or value before and after scaling; the feed-forward keeps only its own input."""
        return 0 if site is Site.MLP_ACTIVATION else 2 * site.takes.of(sizes)


register(
    AdapterMethod(
        settings=Ia3Settings,
        layer="nemo_launcher.adapters.methods.ia3.layer:infused_adapter",
        title="IA3",
        scheme="ia3",
        section="ia3_tuning",
    )
)
