# SPDX-License-Identifier: Apache-2.0
"""LoRA as updates of a Hugging Face model's linear layers, both ways.

A projection here may be several there, as queries, keys and values are. Its update is one of each of them with the same
first matrix. Back, first matrices that differ are concatenated, and each part of the second matrix has zeros for those
of the others: the rank grows, and the update is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.adapters.forms.changes import Changes, LowRank, Target, adapters_of, whole_state
from nemo_launcher.adapters.forms.layers import chosen
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.adapters.methods.lora.config import LoraSettings, target_of
from nemo_launcher.errors import Problem, UserError

_NAMES = ("linear_in.weight", "linear_out.weight")
_MOST_PADDING = 16
"""An adapter here may have this many times the numbers of the one that was read, since all ranks become the largest."""
_ALWAYS = 1 << 24
"""Numbers that it may have in any case."""


def to_changes(adapters: AdapterSet, state: AdapterState, target: Target) -> Changes:
    """Return the updates of an adapter."""
    settings = adapters.settings
    assert isinstance(settings, LoraSettings)
    changes: Changes = {}
    for key, place in adapters.places.items():
        table, sizes = target.stack(place.stack)
        module = target.module(place, table.find(place.site.target))
        first, second = (state[key][name].float() for name in _NAMES)
        for name, rows in zip(table.names(place.layer, module), module.rows_of(second, sizes), strict=True):
            changes[name] = LowRank(first, rows, settings.scale)
    return changes


@dataclass(frozen=True, slots=True)
class _Joined:
    """The update of one projection here."""

    first: Tensor
    """[r, in]."""
    second: Tensor
    """[out, r], with the part of its scale that is not common to all updates."""


def from_changes(changes: Changes, target: Target, source: str) -> tuple[dict[str, object], AdapterState]:
    """Return the settings and the state of the adapter with these updates.

    Raises UserError for updates that LoRA does not have here, and for ranks so different that padding is too much.
    """
    updates = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
    scales = {change.scale for change in updates.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    joined = _all_joined(updates, scale, target, source)
    rank = max(update.first.size(0) for update in joined.values())
    layers = chosen(updates, target)
    block = {"type": "lora", "adapter_dim": rank, "alpha": scale * rank}
    block["target_modules"] = list(dict.fromkeys(target_of(ours) for _, _, ours in joined))
    settings: dict[str, object] = {"adapter_tuning": block | ({} if layers is None else {"layers": layers})}
    adapters = adapters_of(target.model, settings)
    shapes = {key: {name: adapters.whole_shape(key, name) for name in _NAMES} for key in adapters.adapters}
    _check_padding(updates, shapes, source)
    state = {}
    for key, place in adapters.places.items():
        state[key] = _padded(joined.get((place.stack, place.layer, place.site.target)), shapes[key])
    return settings, whole_state(adapters, state)


def _all_joined(
    updates: Mapping[str, LowRank], scale: float, target: Target, source: str
) -> dict[tuple[str, int, str], _Joined]:
    """Return the update of each projection here, by stack, layer and name. Raises UserError for one elsewhere."""
    layers = target.linear_layers()
    joined: dict[tuple[str, int, str], _Joined] = {}
    used: set[str] = set()
    for entry in target.form.table.entries(target.model.stacks):
        ours = entry.module.ours
        if entry.stack and target_of(ours) is not None and not updates.keys().isdisjoint(entry.theirs):
            parts = [(updates.get(name), layers[name].outputs) for name in entry.theirs]
            first, rows = _concatenated(parts, scale)
            joined[entry.stack, entry.layer, ours] = _Joined(first, entry.module.whole_of(rows, entry.sizes))
            used.update(entry.theirs)
    what = "has an update, but LoRA here acts on the projections of attention and feed-forward"
    elsewhere = sorted(updates.keys() - used)
    if elsewhere:
        fix = "use an adapter without it"
        raise UserError([Problem(f"{source}: {name}", what, fix) for name in elsewhere[:10]])
    return joined


def _concatenated(parts: Sequence[tuple[LowRank | None, int]], scale: float) -> tuple[Tensor, list[Tensor]]:
    """Return one first matrix for updates of the same input, and the rows of each update's second matrix."""
    firsts: list[Tensor] = []
    starts = []
    for update, _ in parts:
        same = next(
            (n for n, first in enumerate(firsts) if update is not None and torch.equal(first, update.first)), None
        )
        starts.append(len(firsts) if same is None else same)
        if update is not None and same is None:
            firsts.append(update.first)
    ends = [0, *torch.tensor([first.size(0) for first in firsts]).cumsum(0).tolist()]
    rows = []
    for (update, outputs), number in zip(parts, starts, strict=True):
        own = torch.zeros(outputs, ends[-1])
        if update is not None:
            second = update.second if update.scale == scale else update.second * (update.scale / scale)
            own[:, ends[number] : ends[number + 1]] = second
        rows.append(own)
    return torch.cat(firsts), rows


def _padded(update: _Joined | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of an adapter with the common rank; without an update, zeros."""
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if update is not None:
        rank = update.first.size(0)
        tensors["linear_in.weight"][:rank] = update.first
        tensors["linear_out.weight"][:, :rank] = update.second
    return tensors


def _check_padding(
    updates: Mapping[str, LowRank], shapes: Mapping[str, Mapping[str, tuple[int, ...]]], source: str
) -> None:
    """Raise UserError if padding to the common rank takes much more memory than the updates."""
    given = sum(update.first.numel() + update.second.numel() for update in updates.values())
    needed = sum(math.prod(shape) for tensors in shapes.values() for shape in tensors.values())
    if needed > _MOST_PADDING * given + _ALWAYS:
        what = f"has ranks so different that {given:,} numbers would become {needed:,}: all ranks are equal here"
        raise UserError(Problem(source, what, "use an adapter with ranks that differ less"))
