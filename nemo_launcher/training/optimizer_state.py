# SPDX-License-Identifier: Apache-2.0
"""Optimizer state by adapter and parameter name, in complete tensors, so that parallel sizes may change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.megatron import parallel


def whole_optimizer_state(adapters: AdapterSet, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state gathered from all ranks, which must all call this."""
    state = optimizer.state_dict()
    entries = state["state"]
    fields = sorted({field for entry in entries.values() for field in entry})
    whole = {}
    for field in fields:
        own = {
            key: {name: entries[index][field] for name, index in names.items() if field in entries.get(index, {})}
            for key, names in _indices(adapters).items()
        }
        own = adapters.gather(own) if _is_by_weight(adapters, own) else _in_main_memory(own)
        whole[field] = parallel.merge_stages(own)
    return {"param_groups": state["param_groups"], "state": whole}


def own_optimizer_state(
    adapters: AdapterSet, optimizer: torch.optim.Optimizer, whole: Mapping[str, Any]
) -> dict[str, Any]:
    """Return this rank's part of a complete state, for `optimizer.load_state_dict`."""
    state: dict[int, dict[str, Any]] = {}
    for field, values in whole["state"].items():
        own = adapters.part(values) if _is_by_weight(adapters, values, whole=True) else values
        for key, names in _indices(adapters).items():
            for name, index in names.items():
                if name in own.get(key, {}):  # an optimizer may keep different fields for matrices and vectors
                    state.setdefault(index, {})[field] = own[key][name]
    groups = optimizer.state_dict()["param_groups"]
    saved = [{**group, "params": mine["params"]} for group, mine in zip(whole["param_groups"], groups, strict=True)]
    return {"state": state, "param_groups": saved}


def _is_by_weight(adapters: AdapterSet, values: Mapping[str, Mapping[str, object]], *, whole: bool = False) -> bool:
    """Return whether a state field has one number per weight, sharded like the weight, rather than one per tensor."""
    for key, adapter in adapters.adapters.items():
        for name, parameter in adapter.named_parameters():
            value = values.get(key, {}).get(name)
            if value is not None:
                shape = adapters.whole_shape(key, name) if whole else parameter.shape
                return (
                    isinstance(value, torch.Tensor)
                    and value.dim() == parameter.dim()
                    and value.numel() == math.prod(shape)
                )
    return False


def _in_main_memory(values: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
    return {
        key: {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in entries.items()}
        for key, entries in values.items()
    }


def _indices(adapters: AdapterSet) -> dict[str, dict[str, int]]:
    """Return the index of every adapter parameter in the optimizer."""
    counter = itertools.count()
    return {
        key: {name: next(counter) for name, _ in adapter.named_parameters()}
        for key, adapter in adapters.adapters.items()
    }
