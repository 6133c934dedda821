# SPDX-License-Identifier: Apache-2.0
"""Precisions of the frozen base, loss scaling, and the base's own dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.training.base_dropout import set_base_dropout
from nemo_launcher.training.loss_scale import GROWTH_INTERVAL, LossScale
from tests.engine import write_squad
from tests.jobs import job_config, run_script


def parameter_with(gradient: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, gradient])
    return parameter


@pytest.mark.unit
def test_gradients_are_unscaled(tiny_base: Path) -> None:
    load_base(tiny_base)  # creates process groups
    scale = LossScale(torch.float16)
    parameter = parameter_with(2.0**16)
    assert scale.unscale([parameter])
    torch.testing.assert_close(parameter.grad, torch.tensor([2.0**-16, 1.0]))


@pytest.mark.unit
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_changes_no_weight_and_halves_the_scale(bad: float, tiny_base: Path) -> None:
    load_base(tiny_base)
    scale = LossScale(torch.float16)
    fine, broken = parameter_with(1.0), parameter_with(bad)
    assert not scale.unscale([fine, broken])
    assert (fine.grad, broken.grad) == (None, None)
    assert scale.value == 2.0**15


@pytest.mark.unit
def test_the_scale_grows_after_good_steps_and_survives_a_checkpoint(tiny_base: Path) -> None:
    load_base(tiny_base)
    scale = LossScale(torch.float16)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.unscale([parameter_with(1.0)])
    resumed = LossScale(torch.float16)
    resumed.load_state_dict(scale.state_dict())
    assert resumed.value == 2.0**16
    resumed.unscale([parameter_with(1.0)])
    assert resumed.value == 2.0**17


@pytest.mark.unit
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_not_scaled(dtype: torch.dtype) -> None:
    assert LossScale(dtype).value == 1.0


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["16", "16-mixed", "bf16-mixed"])
def test_half_precision_trains_fp32_adapters(precision: str, tiny_base: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trainer.precision": precision, "trainer.max_epochs": 4}
    job = run_script("train", job_config(tiny_base, write_squad(tmp_path / "data"), tmp_path, changes), tmp_path)
    assert job.status == 0, job.output
    config, state = read_adapter(tmp_path / "results/adapter.nemo")
    assert {tensor.dtype for tensors in state.values() for tensor in tensors.values()} == {torch.float32}
    assert any(float(tensors["linear_out.weight"].abs().max()) > 0 for tensors in state.values())
    assert config["base_fingerprint"] == load_base(tiny_base).fingerprint
    assert config["existing_tasks"] == ["squad"]


@pytest.mark.unit
def test_the_bases_dropout_is_set_for_train_mode_alone(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    set_base_dropout(base.model, {"hidden_dropout": 0.25, "attention_dropout": 0.5})
    attention = [module for module in base.model.modules() if isinstance(module, PackedAttention)]
    assert [module.dropout for module in attention] == [0.5] * len(attention)
    assert base.model.decoder.layers[0].hidden_dropout == 0.25
    assert base.model.embedding.embedding_dropout.p == 0.25
    query = torch.randn(4, 1, 4, 8)
    from nemo_launcher.megatron.attention_plan import AttentionPlan, Group

    plan = AttentionPlan([Group(0, (4,))])
    module = attention[0].eval()
    torch.testing.assert_close(module(query, query, query, plan), module(query, query, query, plan))
    module.train()
    assert not torch.equal(module(query, query, query, plan), module(query, query, query, plan))
