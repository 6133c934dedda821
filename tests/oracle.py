# SPDX-License-Identifier: Apache-2.0
"""Results of NVIDIA's own code (shared/oracle), for the tests."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.samples import GPTSample
from tests.shared import shared_path

KINDS = {"adapter": "parallel_adapter", "linear": "linear_adapter", "ia3": "ia3"}
"""The methods of NVIDIA's adapters, by the first word of their names."""
LAYER_CASES = ("adapter", "ia3", "adapter_swiglu_gqa")
"""What NeMo 1.23 computed on one layer of Megatron-core (mcore_layer.pt)."""
GPT_CASES = (
    "adapter_gpt",
    "adapter_gpt_fused",
    "adapter_gpt_llama",
    "adapter_post_gpt",
    "ia3_gpt",
    "ia3_gpt_fused",
    "ia3_gpt_llama",
    "linear_gpt",
    "linear_gpt_fused",
    "linear_gpt_llama",
)


def load(name: str) -> dict[str, Any]:
    """Return the content of `shared/oracle/<name>.pt`; skip the test if it does not exist."""
    return torch.load(shared_path(f"oracle/{name}.pt"), weights_only=True)


def load_frozen(name: str) -> Base:
    """Return the frozen base of the case `name`."""
    return load_base(shared_path(f"oracle/base_gpt{name.partition('_gpt')[2]}.nemo"))


def model_config(case: dict[str, Any]) -> dict[str, Any]:
    """Return NeMo's `model` section."""
    return OmegaConf.to_container(OmegaConf.create(case["adapter_model_config_yaml"]))


def load_adapted(name: str) -> tuple[dict[str, Any], Base, AdapterSet]:
    """Return a case, its base with the case's adapters, and the adapters."""
    case = load(name)
    base = load_frozen(name)
    adapters = AdapterSet(base.model, base.shape, model_config(case))
    adapters.load_state_dict(case["adapter_state_dict"], name)
    return case, base, adapters


def samples(case: dict[str, Any]) -> list[GPTSample]:
    """Return the tokenized examples; the first four are the rows of the case's batch."""
    return [GPTSample(ids, start, {}, "") for _, ids, start in case["examples"]]


def gradients(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return stored gradients under the names of tests.engine.named_gradients."""
    return {name.removeprefix("frozen_model."): value for name, value in stored.items()}
