# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters in the form of AdapterHub's library `adapters`.

A sequential bottleneck there (`BnConfig` with `original_ln_before: false`) is x + up(act(down(norm(x)))), behind a
sub-layer and before its residual: what a bottleneck adapter here computes, if the sub-layer has no bias.

Source: adapters 1.3, src/adapters/methods/modeling.py, class Adapter, and configuration/adapter_config.py, BnConfig.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.adapters.archive import check_base, check_state, read_adapter
from nemo_launcher.adapters.forms.changes import Target, adapters_of
from nemo_launcher.adapters.forms.methods import open_target
from nemo_launcher.adapters.injection import AdapterSet, Place
from nemo_launcher.adapters.methods.bottleneck.config import BottleneckSettings
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.adapters.settings import type_of
from nemo_launcher.adapters.sites import Site
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.new_folder import new_folder

CONFIG, WEIGHTS = "adapter_config.json", "pytorch_adapter.bin"
_NAME = "adapter"
_WHERE = {
    "llama": {Site.ATTENTION_OUTPUT: "attention_adapters.", Site.MLP_OUTPUT: "output_adapters."},
    "t5": {Site.ATTENTION_OUTPUT: "0.", Site.MLP_OUTPUT: "{last}."},
}
"""Where the adapters of a layer are, by the base's model_type; {last}: the number of a block's last sub-layer."""
FIXED: dict[str, object] = {
    "non_linearity": "silu",
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "cross_adapter": False,
    "phm_layer": False,
    "inv_adapter": None,
    "stochastic_depth": 0.0,
}
"""Settings of BnConfig that are the same for all adapters here."""
_PARTS = {
    "parallel_adapter": {
        None: ("linear_in", "linear_out", ""),
        "pre": ("linear_in", "linear_out", "layer_norm"),
        "post": ("linear_in", "linear_out", "layer_norm"),
    },
    "linear_adapter": {
        None: ("module.0", "module.2", ""),
        "pre": ("module.1", "module.3", "module.0"),
        "post": ("module.0", "module.2", "module.3"),
    },
}
"""The names of down- and up-projection and norm in a state, by method and place of the norm."""

NORMS = {"pre": ("adapter_norm_before", "adapter_down.0"), "post": ("adapter_norm_after",)}
"""AdapterHub's names of the norm, by its place; the one before is in a Sequential too."""
UP = "adapter_up"
"""AdapterHub's name of the up-projection."""


def export_adapterhub(adapter: str | Path, base: str | Path, output: str | Path) -> int:
    """Write a bottleneck adapter as a folder that `model.load_adapter` of AdapterHub loads; return its modules.

    Raises UserError for other methods, for an adapter of another base, and for bases whose sub-layers differ there.
    """
    config, state = read_adapter(adapter)
    settings = settings_of(config, f"{adapter}: ")
    if not isinstance(settings, BottleneckSettings):
        what = f"holds {type_of(settings)}, which is no bottleneck adapter"
        raise UserError(Problem(str(adapter), what, "use --to peft or --to hf"))
    target = open_target(base)
    check_kind(target, str(base))
    check_base(config, state, target.model.base, str(adapter))
    check_state(state, str(adapter))
    adapters = adapters_of(target.model, config)
    adapters.check(state, str(adapter))
    tensors: dict[str, Tensor] = {}
    for key, place in adapters.places.items():
        tensors |= {f"{path_of(target, place, _NAME)}{name}": t for name, t in _theirs(state[key], settings)}
    with new_folder(output) as folder:
        text = json.dumps(_config(target, settings, adapters), indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        torch.save(tensors, folder / WEIGHTS)
    return len(adapters.places)


def check_kind(target: Target, source: str) -> None:
    """Raise UserError for a base whose sub-layers AdapterHub adapts elsewhere."""
    kind = target.form.layout.kind
    if kind not in _WHERE:
        what = f"is a {kind}, for which AdapterHub has no adapter that computes the same"
        raise UserError(Problem(source, what, f"use a base of {', '.join(_WHERE)}"))


def path_of(target: Target, place: Place, name: str) -> str:
    """Return what precedes the names of an adapter's tensors; name: that of the whole adapter there."""
    last = 2 if place.stack == "decoder" else 1
    where = _WHERE[target.form.layout.kind][place.site].format(last=last)
    return f"{target.form.table.stack(place.stack).theirs.format(place.layer)}{where}adapters.{name}."


def down_of(norm: str | None) -> str:
    """Return AdapterHub's name of the down-projection, which is in a Sequential; norm: the norm's place."""
    return "adapter_down.1" if norm == "pre" else "adapter_down.0"


def _norm(settings: BottleneckSettings) -> str | None:
    return settings.norm_position if settings.has_norm else None


def _theirs(tensors: Mapping[str, Tensor], settings: BottleneckSettings) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one adapter with AdapterHub's names; its projections have biases, which are 0."""
    norm = _norm(settings)
    down, up, layer_norm = _PARTS[type_of(settings)][norm]
    first, second = (tensors[f"{name}.weight"].float() for name in (down, up))
    for name, weight in ((down_of(norm), first), (UP, second)):
        yield f"{name}.weight", weight
        yield f"{name}.bias", torch.zeros(weight.size(0))
    for name in NORMS.get(norm or "", ()):
        for part in ("weight", "bias"):
            yield f"{name}.{part}", tensors[f"{layer_norm}.{part}"].float()


def _config(target: Target, settings: BottleneckSettings, adapters: AdapterSet) -> dict[str, object]:
    hidden, norm = target.model.base.shape.hidden_size, _norm(settings)
    own = {
        "mh_adapter": True,
        "output_adapter": True,
        "reduction_factor": _factor(hidden, settings.adapter_dim),
        "ln_before": norm == "pre",
        "ln_after": norm == "post",
        "leave_out": _left_out(target, adapters),
        "dropout": settings.adapter_dropout,
    }
    layout = target.form.layout
    about = {"hidden_size": hidden, "model_class": layout.architecture, "model_name": "", "model_type": layout.kind}
    return {"config": FIXED | own, "name": _NAME, "version": "adapters.1.3.0", **about}


def _factor(hidden: int, width: int) -> float:
    """Return a factor for which int(hidden // factor), the library's width of the bottleneck, is `width`."""
    factor = hidden / width
    while int(hidden // factor) < width:
        factor = math.nextafter(factor, 0)
    return factor


def _left_out(target: Target, adapters: AdapterSet) -> list[int]:
    """Return the layers without adapters; those of a decoder behind an encoder follow the encoder's."""
    used = {(place.stack, place.layer) for place in adapters.places.values()}
    every = [(name, layer) for name, shape in target.model.stacks.items() for layer in range(shape.num_layers)]
    return [number for number, place in enumerate(every) if place not in used]
