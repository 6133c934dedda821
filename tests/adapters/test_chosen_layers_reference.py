# SPDX-License-Identifier: Apache-2.0
"""Adapters in chosen layers give the losses and gradients of transformers' Llama with plain hooks in these layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine import adapted, gradients_of, random_tree, tiny_gpt_nemo
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit

LAYERS = 4
Weights = Mapping[str, Tensor]
"""An adapter's tensors by name."""


def hook_output(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the module's output by change(input, output)."""
    module.register_forward_hook(lambda _, inputs, output: change(inputs[0], output))


def ia3(layer: Any, weights: Mapping[str, Weights]) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    scale = {name.rpartition(":")[2].partition("_")[0]: tensors["scalers"] for name, tensors in weights.items()}
    hook_output(attention.k_proj, lambda _, keys: keys * scale["key"])
    hook_output(attention.v_proj, lambda _, values: values * scale["value"])
    mlp.down_proj.register_forward_pre_hook(lambda _, inputs: (inputs[0] * scale["mlp"],))


def parallel_adapter(layer: Any, weights: Mapping[str, Weights]) -> None:
    bottleneck(layer, weights, "layer_norm", "linear_in", "linear_out")


def linear_adapter(layer: Any, weights: Mapping[str, Weights]) -> None:
    bottleneck(layer, weights, "module.0", "module.1", "module.3")


def bottleneck(layer: Any, weights: Mapping[str, Weights], norm: str, down: str, up: str) -> None:
    for place, name in ((layer.self_attn.o_proj, ":adapter_1"), (layer.mlp.down_proj, ":adapter_2")):

        def adapt(_: Tensor, x: Tensor, own: Weights = weights[name]) -> Tensor:
            hidden = F.layer_norm(x, x.shape[-1:], own[f"{norm}.weight"], own[f"{norm}.bias"], 1e-5)
            return x + F.silu(hidden @ own[f"{down}.weight"].T) @ own[f"{up}.weight"].T

        hook_output(place, adapt)


def lora(layer: Any, weights: Mapping[str, Weights]) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    alpha, rank, groups = 0.5, 4, 2
    own = {name.rpartition(":")[2]: tensors for name, tensors in weights.items()}

    def update(module: nn.Module, name: str, rows: Callable[[Tensor], Tensor] = lambda b: b) -> None:
        down, up = own[name]["linear_in.weight"], own[name]["linear_out.weight"]
        hook_output(module, lambda x, output: output + alpha / rank * (x @ down.T) @ rows(up).T)

    def of_group(part: slice) -> Callable[[Tensor], Tensor]:
        """Megatron's rows lie by group: its query heads, its key, its value."""
        return lambda b: b.view(groups, 4, -1, rank)[:, part].reshape(-1, rank)

    update(attention.q_proj, "lora_kqv_adapter", of_group(slice(0, 2)))
    update(attention.k_proj, "lora_kqv_adapter", of_group(slice(2, 3)))
    update(attention.v_proj, "lora_kqv_adapter", of_group(slice(3, 4)))
    update(attention.o_proj, "lora_dense_attention_adapter")
    update(mlp.gate_proj, "lora_hto4h_adapter", lambda b: b.chunk(2)[0])
    update(mlp.up_proj, "lora_hto4h_adapter", lambda b: b.chunk(2)[1])
    update(mlp.down_proj, "lora_4htoh_adapter")


PLAIN = {hooks.__name__: hooks for hooks in (ia3, parallel_adapter, linear_adapter, lora)}
"""By method."""


@pytest.mark.parametrize("layers", ["2-3", [0, 3], 1])
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_those_of_transformers(method: str, layers: Any, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    if method not in PLAIN:
        pytest.skip(f"there are no plain hooks for {method}")
    path = tiny_gpt_nemo(tmp_path / "base.nemo", num_hidden_layers=LAYERS)
    base, adapters = adapted(path, model_section(method, layers=layers))
    samples = random_tree(5, 50, 6)
    loss, found, _ = gradients_of(base, adapters, samples, micro_batch_size=3)

    model = LlamaForCausalLM.from_pretrained(tmp_path / "base_hf", dtype=torch.float32).requires_grad_(False)
    weights = {
        key: {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        for key, tensors in adapters.state_dict().items()
    }
    for number in sorted(adapters.settings.chosen_layers("decoder", LAYERS)):
        prefix = f"model.language_model.encoder.layers.{number}"
        own = {key.removeprefix(prefix): tensors for key, tensors in weights.items() if key.startswith(prefix)}
        PLAIN[method](model.model.layers[number], own)
    total = torch.zeros(())
    for sample in samples:
        ids, first = torch.tensor(sample.input_ids), max(1, sample.answer_start)
        logits = model(ids[None]).logits[0, first - 1 : -1]
        total = total + F.cross_entropy(logits, ids[first:], reduction="sum")
    wanted = total / sum(sample.num_trained_tokens for sample in samples)
    wanted.backward()

    assert loss == pytest.approx(float(wanted), rel=1e-5)
    gradients = {
        f"{key.replace(':', '.adapter_layer.')}.{name}": tensor.grad
        for key, tensors in weights.items()
        for name, tensor in tensors.items()
    }
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5 * largest)
