# SPDX-License-Identifier: Apache-2.0
"""Merging of adapters of one method and base.

LoRA's updates are added exactly, by concatenated ranks. Vectors and bottlenecks enter the model in products and behind
non-linearities, so a merged one is an average of weights, not a sum of effects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.adapters.archive import check_state, read_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.adapters.methods.lora.config import LoraSettings
from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.adapters.settings import Settings, type_of
from nemo_launcher.checkpoint.finite import is_finite
from nemo_launcher.checkpoint.stored_tensor import shown as shown_name
from nemo_launcher.config.constraints import shown
from nemo_launcher.config.layers import described
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.values import below, entries, text

_FIRST, _SECOND = "linear_in.weight", "linear_out.weight"
_AGAIN = "copy it again"
_IDENTITY = ("base_fingerprint", "base_checksum")
SUM, AVERAGE = "sum of updates", "average of weights"
"""What a merged adapter is."""


@dataclass(frozen=True, slots=True)
class _Read:
    """One of the adapters."""

    path: str
    """Its file."""
    weight: float
    """Its share."""
    config: dict[str, object]
    """Its configuration."""
    settings: Settings
    """Its settings."""
    state: AdapterState
    """Its tensors."""


def merge_adapters(paths: Sequence[str | Path], weights: Sequence[float], output: str | Path) -> tuple[str, str]:
    """Write an adapter that is merged of several; return its method, and what it is (SUM or AVERAGE).

    weights: the factor of each update of LoRA; for other methods, the shares of an average, whose sum must be 1.
    Raises UserError for adapters of different methods, bases, layers or settings, and for weights that do not fit.
    """
    adapters = []
    for path, weight in zip(paths, weights, strict=True):
        config, state = read_adapter(path)
        check_state(state, str(path))
        adapters.append(_Read(str(path), weight, config, settings_of(config, f"{path}: "), state))
    is_lora = all(isinstance(adapter.settings, LoraSettings) for adapter in adapters)
    problems = [problem for adapter in adapters for problem in _damages(adapter)]
    problems = problems or _differences(adapters, is_lora=is_lora)
    if not is_lora and not math.isclose(sum(weights), 1, abs_tol=1e-6):
        what = f"add up to {sum(weights):g}, but {method_of(adapters[0].config).name} adapters are averaged"
        problems.append(Problem("--weights", what, "give weights that add up to 1"))
    if problems:
        raise UserError(problems)
    block, state = _concatenated(adapters) if is_lora else ({}, _averaged(adapters))
    if not all(is_finite(tensor) for tensors in state.values() for tensor in tensors.values()):
        raise UserError(Problem("--weights", "give values beyond the range of 32 bits", "give smaller numbers"))
    save_adapter(output, _configuration(adapters, block), state)
    return type_of(adapters[0].settings), SUM if is_lora else AVERAGE


def _damages(adapter: _Read) -> list[Problem]:
    """Return what an intact adapter does not have: no tensors, or those of LoRA in shapes that do not fit its rank."""
    if not adapter.state:
        return [Problem(adapter.path, "holds no tensors", _AGAIN)]
    if not isinstance(adapter.settings, LoraSettings):
        return []
    rank, problems = adapter.settings.adapter_dim, []
    for key, tensors in adapter.state.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        first, second = shapes.get(_FIRST, ()), shapes.get(_SECOND, ())
        if len(shapes) != 2 or len(first) != 2 or len(second) != 2 or not first[0] == second[1] == rank:
            what = f"holds {shapes}; a rank of {rank} needs {_FIRST} [{rank}, in] and {_SECOND} [out, {rank}]"
            problems.append(Problem(f"{adapter.path}: {shown_name(key)}", what, _AGAIN))
    return problems[:10]


def _differences(adapters: Sequence[_Read], *, is_lora: bool) -> list[Problem]:
    """Return a problem for each adapter that is of another method or base than the first, or does not fit it."""
    first, problems = adapters[0], []
    for other in adapters[1:]:
        kinds = type_of(first.settings), type_of(other.settings)
        if kinds[0] != kinds[1]:
            what = f"is a {kinds[1]} adapter, but {first.path} is a {kinds[0]}"
            problems.append(Problem(other.path, what, "merge adapters of one method"))
            continue
        problems += _other_base(first, other)
        if described(first.settings.layers) != described(other.settings.layers):
            what = f"is in layers {described(other.settings.layers)}, but {first.path} is in others"
            problems.append(Problem(other.path, what, "merge adapters of the same layers"))
        mine, theirs = first.settings.computed(), other.settings.computed()
        problems += [
            Problem(
                f"{other.path}: {key}",
                f"is {shown(theirs[key])}, but {first.path} has {shown(mine[key])}",
                "merge adapters of the same settings",
            )
            for key in mine
            if mine[key] != theirs[key] and not (is_lora and key in ("adapter_dim", "alpha"))
        ]
        if not problems and first.state.keys() != other.state.keys():
            problems.append(Problem(other.path, f"has other adapters than {first.path}", "merge adapters of one model"))
        if not problems:
            problems += _other_shapes(first, other)
    return problems


def _other_base(first: _Read, other: _Read) -> list[Problem]:
    """Return a problem if the configurations name different bases, or one of them names none."""
    for key in _IDENTITY:
        mine, theirs = text(first.config, key), text(other.config, key)
        if key == _IDENTITY[0] and (mine is None or theirs is None):
            lacking = first.path if mine is None else other.path
            return [Problem(lacking, f"has no {key}", "use adapters that this launcher trained or imported")]
        if mine is not None and theirs is not None and mine != theirs:
            what = f"belongs to another base than {first.path}: {theirs}, not {mine}"
            return [Problem(other.path, what, "merge adapters of one base")]
    return []


def _other_shapes(first: _Read, other: _Read) -> list[Problem]:
    """Return a problem for each adapter whose tensors have other names or shapes; the ranks of LoRA may differ."""
    return [
        Problem(f"{other.path}: {shown_name(key)}", f"holds {theirs}, but {first.path} {ours}", _AGAIN)
        for key, tensors in other.state.items()
        if (theirs := _shapes(other, tensors)) != (ours := _shapes(first, first.state[key]))
    ][:10]


def _shapes(adapter: _Read, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if isinstance(adapter.settings, LoraSettings):
        return {_FIRST: (tensors[_FIRST].size(1),), _SECOND: (tensors[_SECOND].size(0),)}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _concatenated(adapters: Sequence[_Read]) -> tuple[dict[str, object], AdapterState]:
    """Return the rank and alpha of LoRA, and its state: each part of the second matrix has its scale and weight."""
    state: AdapterState = {}
    for key in adapters[0].state:
        firsts, seconds = [], []
        for adapter in adapters:
            assert isinstance(adapter.settings, LoraSettings)
            firsts.append(adapter.state[key][_FIRST].float())
            seconds.append(adapter.state[key][_SECOND].float() * (adapter.settings.scale * adapter.weight))
        state[key] = {_FIRST: torch.cat(firsts), _SECOND: torch.cat(seconds, dim=1)}
    rank = next(iter(state.values()))[_FIRST].size(0)
    return {"adapter_dim": rank, "alpha": float(rank)}, state


def _averaged(adapters: Sequence[_Read]) -> AdapterState:
    return {
        key: {
            name: torch.stack([adapter.state[key][name].float() * adapter.weight for adapter in adapters]).sum(0)
            for name in tensors
        }
        for key, tensors in adapters[0].state.items()
    }


def _configuration(adapters: Sequence[_Read], block: Mapping[str, object]) -> dict[str, object]:
    """Return the first adapter's configuration with the tasks of all, and what it was merged of."""
    first = adapters[0]
    config = dict(first.config)
    section = method_of(config).block
    if block:
        config[section] = {**below(config, section), **block}
    templates: dict[str, Mapping[str, object]] = {}
    for adapter in adapters:
        for entry in entries(adapter.config, "task_templates"):
            templates.setdefault(str(entry.get("taskname")), entry)
    merged_of = [{"file": Path(adapter.path).name, "weight": adapter.weight} for adapter in adapters]
    return config | {"task_templates": list(templates.values()), "merged_of": merged_of}
