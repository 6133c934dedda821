# SPDX-License-Identifier: Apache-2.0
"""Adapters for a plain transformers model, as one writes them without a library: modules called in forward hooks.

They compute the same as NeMo's, and are named as in benchmarks.adapter_weights. Source of the methods: see
nemo_launcher/adapters/methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.adapter_weights import Part, whole

WIDTH = 16
"""The width of a bottleneck, and LoRA's rank; its update is not scaled."""

_NAMES = {name: name[0] for name in ("q", "k", "v", "o", "q_proj", "k_proj", "v_proj", "o_proj")}
_NAMES |= {"wo": "ff", "down_proj": "ff"}


class Scale(nn.Module):
    """IA3's vector, [width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [..., width], scaled."""
        return x * self.scale.to(x.dtype)


class Bottleneck(nn.Module):
    """x + up(silu(down(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.down = nn.Parameter(torch.empty(WIDTH, width))
        self.up = nn.Parameter(torch.zeros(width, WIDTH))
        nn.init.xavier_normal_(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted x, [..., width]."""
        weight, bias = self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype)
        hidden = F.linear(F.layer_norm(x, weight.shape, weight, bias, 1e-5), self.down.to(x.dtype))
        return x + F.linear(F.silu(hidden), self.up.to(x.dtype))


class Lora(nn.Module):
    """The update of some projections of one input; the rows of `up` are those of the projections."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(WIDTH, inputs)), nn.Parameter(torch.zeros(outputs, WIDTH))
        nn.init.xavier_normal_(self.down)

    def update(self, x: Tensor, rows: slice) -> Tensor:
        """Return the update of one projection, [..., rows], for its input x, [..., inputs]."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up[rows].to(x.dtype))


def projections(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Yield place, name (q, k, v, o, ff) and module of each projection that adapters act on, or of its wrapper."""
    for path, module in model.named_modules():
        *above, last = path.split(".")
        layers = {"layers", "block"} & {*above}
        if last in _NAMES and layers:
            layer = above[above.index(layers.pop()) + 1]
            stack = next((f"{name}." for name in ("encoder", "decoder") if name in above), "")
            cross = "cross." if "EncDecAttention" in above else ""
            yield f"{stack}{layer}.{cross}", _NAMES[last], module


def attach(model: nn.Module, method: str) -> dict[str, nn.Module]:
    """Freeze a model and attach adapters of a method; return them by place."""
    model.requires_grad_(False)
    adapters = {"ia3": _ia3, "adapter": _bottlenecks, "linear_adapter": _bottlenecks, "lora": _lora}[method](model)
    model.hooked_adapters = nn.ModuleList(adapters.values())
    return adapters


def places(adapters: dict[str, nn.Module]) -> Iterator[tuple[str, dict[str, Part]]]:
    """Yield the place and the parts of each adapter (benchmarks.adapter_weights)."""
    for place, adapter in adapters.items():
        yield place, whole(dict(adapter.named_parameters()))


def _ia3(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for place, name, module in projections(model):
        if name in ("k", "v"):
            found[f"{place}{name}"] = scale = Scale(module.out_features)
            module.register_forward_hook(lambda _, __, output, scale=scale: scale(output))
        elif name == "ff":
            found[f"{place}{name}"] = scale = Scale(module.in_features)
            module.register_forward_pre_hook(lambda _, inputs, scale=scale: (scale(inputs[0]),))
    return found


def _bottlenecks(model: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for place, name, module in projections(model):
        if name in ("o", "ff") and "cross" not in place:
            kind = "attention" if name == "o" else "mlp"
            found[f"{place}{kind}"] = adapter = Bottleneck(module.out_features)
            module.register_forward_hook(lambda _, __, output, adapter=adapter: adapter(output))
    return found


def _lora(model: nn.Module) -> dict[str, nn.Module]:
    """Attach one module to the projections of the same input, which share its first matrix."""
    inputs: dict[str, list[nn.Linear]] = {}
    for place, name, module in projections(model):
        if name in "qkv":
            kind = ("q" if name == "q" else "kv") if "cross" in place else "qkv"
            inputs.setdefault(f"{place}{kind}", []).append(module)
    found: dict[str, nn.Module] = {}
    for place, modules in inputs.items():
        found[place] = lora = Lora(modules[0].in_features, sum(module.out_features for module in modules))
        first = 0
        for module in modules:
            rows = slice(first, first + module.out_features)
            first = rows.stop
            module.register_forward_hook(_add_update(lora, rows))
    return found


def _add_update(lora: Lora, rows: slice) -> Any:
    return lambda _, inputs, output: output + lora.update(inputs[0], rows)
