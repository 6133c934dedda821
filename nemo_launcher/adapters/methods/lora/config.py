# SPDX-License-Identifier: Apache-2.0
"""Settings of LoRA, with the names of NeMo 1.23's `lora_tuning` (nemo/collections/nlp/parts/peft_config.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

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
from nemo_launcher.config.constraints import Bounds, Length
from nemo_launcher.config.sections.common import Count
from nemo_launcher.errors import Problem
from nemo_launcher.megatron.sizes import LayerSizes

Target = Literal["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2", "attention", "mlp", "all"]

# target -> its sites, including a T5 decoder's cross-attention, with NeMo's adapter names
_SITES: dict[str, dict[Site, str]] = {
    "attention_qkv": {
        Site.LINEAR_QKV: "lora_kqv_adapter",
        Site.CROSS_LINEAR_Q: "lora_q_adapter",
        Site.CROSS_LINEAR_KV: "lora_kv_adapter",
    },
    "attention_dense": {
        Site.LINEAR_PROJ: "lora_dense_attention_adapter",
        Site.CROSS_LINEAR_PROJ: "lora_dense_attention_adapter",
    },
    "mlp_fc1": {Site.LINEAR_FC1: "lora_hto4h_adapter"},
    "mlp_fc2": {Site.LINEAR_FC2: "lora_4htoh_adapter"},
}
# name of a group -> its targets
_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": tuple(_SITES),
}


def target_of(module: str) -> str | None:
    """Return the target with a module of a layer, such as `mlp.linear_fc1`; None if no update acts on it."""
    return next((target for target, sites in _SITES.items() if module in (site.target for site in sites)), None)


def _placement(name: str, site: Site) -> Placement:
    """Return the placement of an adapter beside a projection.

    linear_in is split by columns if ranks split the projection's input, else by rows; linear_out always by rows.
    """
    first = Split(1) if site.takes.is_split else Split(0)
    return Placement(name, site, {"linear_in.weight": first, "linear_out.weight": Split(0, site.gives.has_gate)})


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """`type: lora`."""

    PLACEMENTS: ClassVar[tuple[Placement, ...]] = tuple(
        _placement(name, site) for sites in _SITES.values() for site, name in sites.items()
    )
    LEARNING_RATES: ClassVar[LearningRates] = LearningRates(few=3e-3, many=3e-4)
    COMPUTED: ClassVar[tuple[str, ...]] = ("adapter_dim", "alpha", "target_modules")
    EXAMPLE: ClassVar[dict[str, object]] = {"type": "lora", "adapter_dim": 4, "alpha": 0.5, "target_modules": ["all"]}
    ALIASES: ClassVar[dict[str, str]] = {
        "r": "adapter_dim",
        "lora_rank": "adapter_dim",
        "lora_alpha": "alpha",
        "lora_dropout": "adapter_dropout",
    }

    type: Literal["lora"]
    """Selects the method."""
    adapter_dim: Count
    """The rank r of the update."""
    alpha: Annotated[float, Bounds(above=0, example=32)] | None = None
    """The update is scaled by alpha / adapter_dim; null scales by 1."""
    adapter_dropout: Probability = 0.0
    """The dropout probability, in training."""
    dropout_position: Literal["pre", "post"] = "post"
    """Where dropout is applied: pre, to the projection's input; post, to the update."""
    column_init_method: InitMethod = "xavier"
    """The initialization of the first matrix, A."""
    row_init_method: InitMethod = "zero"
    """The initialization of the second matrix, B; with zero, training starts from the frozen model's output."""
    target_modules: Annotated[list[Target], Length(1, example=("attention_qkv",))] = field(
        default_factory=lambda: ["attention_qkv"]
    )
    """The projections that get an update."""

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return 1.0 if self.alpha is None else self.alpha / self.adapter_dim

    def targets(self) -> tuple[str, ...]:
        """Return the named targets, with groups expanded, in layer order."""
        named = {target for name in self.target_modules for target in _GROUPS.get(name, (name,))}
        return tuple(target for target in _SITES if target in named)

    def placements(self) -> tuple[Placement, ...]:
        """Return the placements beside the target projections."""
        sites = {site for target in self.targets() for site in _SITES[target]}
        return tuple(placement for placement in self.PLACEMENTS if placement.site in sites)

    def expert_problems(self, where: str) -> list[Problem]:
        """Return a problem if feed-forwards are among the targets."""
        inner = [target for target in self.targets() if target in _GROUPS["mlp"]]
        what = f"{' and '.join(inner)}: the base is a mixture of experts, whose feed-forwards get no updates"
        return [Problem(f"{where}.target_modules", what, "target_modules=[attention]")] if inner else []

    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        """Return the number of parameters of both matrices, A and B."""
        return self.adapter_dim * (site.takes.of(sizes) + site.gives.of(sizes))

    def kept_elements(self, site: Site, sizes: LayerSizes) -> int:
        """Return those of the projection's input, A's output, and dropout's mask."""
        dropped = site.takes if self.dropout_position == "pre" else site.gives
        mask = dropped.of(sizes) if self.adapter_dropout > 0 else 0
        return site.takes.of(sizes) + self.adapter_dim + mask

    def computed(self) -> dict[str, object]:
        """Return the settings of COMPUTED, with groups of targets expanded and alpha as a number."""
        return {
            "adapter_dim": self.adapter_dim,
            "alpha": self.scale * self.adapter_dim,
            "target_modules": list(self.targets()),
        }

    def wrong(self, tensor_parallel_size: int) -> list[Wrong]:
        """Return a problem if ranks cannot split the rank evenly, or if both matrices start at zero."""
        found = divided("adapter_dim", self.adapter_dim, tensor_parallel_size)
        if self.column_init_method == self.row_init_method == "zero":
            what = "and row_init_method are both zero: every gradient is zero, so nothing is learned"
            found.append(Wrong("column_init_method", what, "xavier"))
        return found


register(
    AdapterMethod(
        settings=LoraSettings,
        layer="nemo_launcher.adapters.methods.lora.layer:lora_adapter",
        title="adapters",
        scheme="lora",
        section="lora_tuning",
    )
)
