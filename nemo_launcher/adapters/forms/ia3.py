# SPDX-License-Identifier: Apache-2.0
"""IA3 as vectors of a Hugging Face model's linear layers, both ways.

Keys and values are scaled at the output of their projections, before rotary positions; the feed-forward's activation at
the input of its second projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_launcher.adapters.forms.changes import Changes, LowRank, Scaled, Target, adapters_of, whole_state
from nemo_launcher.adapters.forms.layers import chosen
from nemo_launcher.adapters.injection import AdapterSet, AdapterState, Place
from nemo_launcher.adapters.sites import Site
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.hf_table import Module
from nemo_launcher.megatron.sizes import LayerSizes

_LETTERS = {"key": "k", "value": "v"}
_LAST = "mlp.linear_fc2"


def to_changes(adapters: AdapterSet, state: AdapterState, target: Target) -> Changes:
    """Return the vectors of an adapter."""
    whole: dict[tuple[str, ...], tuple[Module, LayerSizes, Tensor]] = {}
    changes: Changes = {}
    for key, place in adapters.places.items():
        module, names, sizes = _module(target, place)
        scalers = state[key]["scalers"].float()
        if place.site is Site.MLP_ACTIVATION:
            changes[names[0]] = Scaled(scalers, on_input=True)
            continue
        _, _, rows = whole.setdefault(names, (module, sizes, torch.ones(_rows(module, sizes))))
        rows[module.head_rows(_LETTERS[place.site.target], sizes)] = scalers
    for names, (module, sizes, rows) in whole.items():
        for name, part, letters in zip(names, rows.split(module.widths(sizes, len(rows))), _parts(module), strict=True):
            if letters != "q":
                changes[name] = Scaled(part, on_input=False)
    return changes


def from_changes(changes: Changes, target: Target, source: str) -> tuple[dict[str, object], AdapterState]:
    """Return the settings and the state of the adapter with these vectors; absent ones are 1.

    Raises UserError for vectors that IA3 does not have here, such as one of queries, unless they are 1.
    """
    vectors = {name: change for name, change in changes.items() if not _is_one(change)}
    layers = chosen(changes, target)
    settings: dict[str, object] = {} if layers is None else {"ia3_tuning": {"layers": layers}}
    adapters = adapters_of(target.model, settings)
    state: AdapterState = {}
    for key, place in adapters.places.items():
        module, names, sizes = _module(target, place)
        if place.site is Site.MLP_ACTIVATION:
            found = _taken(vectors, names[0], on_input=True)
            width = place.site.takes.of(sizes)
            state[key] = {"scalers": torch.ones(width) if found is None else found}
            continue
        widths = module.widths(sizes, _rows(module, sizes))
        parts = [_taken(vectors, name, on_input=False) for name in names]
        rows = torch.cat([torch.ones(n) if p is None else p for n, p in zip(widths, parts, strict=True)])
        state[key] = {"scalers": rows[module.head_rows(_LETTERS[place.site.target], sizes)]}
    _check_used(vectors, state, adapters, target, source)
    return settings, whole_state(adapters, state)


def _check_used(vectors: Changes, state: AdapterState, adapters: AdapterSet, target: Target, source: str) -> None:
    """Raise UserError unless the state has the effect of all vectors."""
    made = to_changes(adapters, state, target)
    problems = []
    for name, change in vectors.items():
        own = made.get(name)
        same = isinstance(own, Scaled) and isinstance(change, Scaled) and own.on_input == change.on_input
        if same and isinstance(own, Scaled) and isinstance(change, Scaled) and torch.equal(own.factors, change.factors):
            continue
        what = "has a vector that is not 1 and that IA3 does not have here: it scales keys, values and activations"
        problems.append(Problem(f"{source}: {name}", what, "use an adapter without it"))
    if problems:
        raise UserError(problems[:10])


def _is_one(change: Scaled | LowRank) -> bool:
    return isinstance(change, Scaled) and change.is_one


def _taken(vectors: Changes, name: str, *, on_input: bool) -> Tensor | None:
    found = vectors.get(name)
    return found.factors if isinstance(found, Scaled) and found.on_input == on_input else None


def _module(target: Target, place: Place) -> tuple[Module, tuple[str, ...], LayerSizes]:
    """Return the entry in which a place is, its names of Hugging Face, and the sizes of the layer."""
    table, sizes = target.stack(place.stack)
    is_last = place.site is Site.MLP_ACTIVATION
    module = target.module(place, table.find(_LAST) if is_last else table.attending(place.site.module_path))
    return module, tuple(table.names(place.layer, module)), sizes


def _rows(module: Module, sizes: LayerSizes) -> int:
    return module.all_rows(sizes)


def _parts(module: Module) -> list[str]:
    """Return what the rows of each module of Hugging Face are: one of queries, keys and values, or all of them."""
    return list(module.heads) if len(module.theirs) == len(module.heads) else [module.heads]
