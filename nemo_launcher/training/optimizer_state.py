# SPDX-License-Identifier: Apache-2.0
"""Optimizer state by adapter and parameter name, in complete tensors, so that parallel sizes may change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TypeAlias, TypedDict, TypeGuard

import torch

from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.megatron import parallel

Values: TypeAlias = Mapping[str, Mapping[str, object]]
"""One field of the state, such as `exp_avg`: adapter -> parameter -> a tensor, or a number."""


class OptimizerState(TypedDict):
    """The state of an optimizer, whole, as checkpoints hold it."""

    param_groups: list[dict[str, object]]
    """Settings of each group of parameters, and their numbers."""
    state: dict[str, Values]
    """By field."""


def whole_optimizer_state(adapters: AdapterSet, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Return the state gathered from all ranks, which must all call this."""
    state = optimizer.state_dict()
    entries = state["state"]
    # a pipeline stage without adapters has no entries, but takes part in gathering those of the others
    fields = sorted(parallel.merge_stages({field: None for entry in entries.values() for field in entry}))
    whole: dict[str, Values] = {}
    for field in fields:
        own: Values = {
            key: {name: entries[index][field] for name, index in names.items() if field in entries.get(index, {})}
            for key, names in _indices(adapters).items()
        }
        if _is_by_weight(own, adapters):
            whole[field] = parallel.merge_stages(adapters.gather(own))
        else:
            whole[field] = parallel.merge_stages(_in_main_memory(own))
    return {"param_groups": state["param_groups"], "state": whole}


def own_optimizer_state(
    adapters: AdapterSet, optimizer: torch.optim.Optimizer, whole: OptimizerState
) -> dict[str, object]:
    """Return this rank's part of a complete state, for `optimizer.load_state_dict`."""
    state: dict[int, dict[str, object]] = {}
    for field, values in whole["state"].items():
        own = adapters.part(values) if _is_by_weight(values, adapters, whole=True) else values
        for key, names in _indices(adapters).items():
            for name, index in names.items():
                if name in own.get(key, {}):  # an optimizer may keep different fields for matrices and vectors
                    state.setdefault(index, {})[field] = own[key][name]
    groups = optimizer.state_dict()["param_groups"]
    saved = [{**group, "params": mine["params"]} for group, mine in zip(whole["param_groups"], groups, strict=True)]
    return {"state": state, "param_groups": saved}


def _is_by_weight(values: Values, adapters: AdapterSet, *, whole: bool = False) -> TypeGuard[AdapterState]:
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


def _in_main_memory(values: Values) -> dict[str, dict[str, object]]:
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
