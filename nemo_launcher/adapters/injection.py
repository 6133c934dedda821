"""Putting a method's adapters into a frozen model, and their weights in and out under NeMo's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.adapters.registry import AdapterMethod, Placement, method_of
from nemo_launcher.adapters.sites import attach, has_site
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families import family_of_model

AdapterState = dict[str, dict[str, Tensor]]


class AdapterSet:
    """All adapters of one method in one model.

    adapters: by NeMo's state-dict key, `<path of the layers>.N[.self_attention|.inter_attention|.mlp]:NAME`
    (adapters.stacks). Only these modules' parameters require gradients.
    """

    def __init__(self, model: nn.Module, shape: Any, config: Mapping[str, Any]) -> None:
        self.method: AdapterMethod = method_of(config)
        self.adapters: dict[str, nn.Module] = {}
        block = config.get("adapter_tuning") or {}
        device = next(model.parameters()).device
        for stack in family_of_model(model).stacks(model, shape):
            path = stack.path_for(self.method.name)
            for layer in stack.layers:
                for placement in self.method.placements:
                    if has_site(layer, placement.site):
                        adapter = self.method.build(block, placement.site, stack.shape).to(device)
                        attach(layer, placement.site, placement.name, adapter)
                        self.adapters[_state_key(f"{path}.{layer.layer_number - 1}", placement)] = adapter

    def parameters(self) -> list[nn.Parameter]:
        """Return every trainable parameter, in the order of the layers."""
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]

    def num_parameters(self) -> int:
        """Return how many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> None:
        """Switch the adapters' dropout on or off; the frozen base stays in eval mode."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    def state_dict(self) -> AdapterState:
        """Return the weights in NeMo's form: a dict of tensors for each adapter."""
        return {
            key: {name: tensor.detach() for name, tensor in adapter.state_dict().items()}
            for key, adapter in self.adapters.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Load weights in NeMo's form.

        Raises UserError, loading nothing, when an adapter or tensor is absent, superfluous or of another shape.
        """
        problems = [Problem(f"{source}: {key}", "is absent") for key in self.adapters.keys() - state.keys()]
        problems += [Problem(f"{source}: {key}", "has no place in this model") for key in state.keys() - self.adapters]
        for key in self.adapters.keys() & state.keys():
            own = {name: tuple(tensor.shape) for name, tensor in self.adapters[key].state_dict().items()}
            theirs = {name: tuple(tensor.shape) for name, tensor in state[key].items()}
            if own != theirs:
                problems.append(Problem(f"{source}: {key}", f"holds {theirs}", f"this model and method need {own}"))
        if problems:
            raise UserError(problems[:10])
        with torch.no_grad():
            for key, adapter in self.adapters.items():
                adapter.load_state_dict(state[key])


def _state_key(layer: str, placement: Placement) -> str:
    path = f"{layer}.{placement.site.nemo_path}" if placement.site.nemo_path else layer
    return f"{path}:{placement.name}"
