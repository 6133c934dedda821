# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of nemo_toolkit that training depends on."""

from __future__ import annotations

import inspect

import pytest
import torch
from nemo.core import ModelPT
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS, prepare_lr_scheduler
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


@leans_on("nemo_launcher/training/nemo/model.py", "_optimizer_param_groups")
def test_an_optimizer_is_built_from_the_parameter_groups() -> None:
    """They hold only the adapters: setup_optimizer_param_groups is overridden and sets this name."""
    assert "self._optimizer_param_groups = " in inspect.getsource(ModelPT.setup_optimizer_param_groups)
    body = inspect.getsource(ModelPT.setup_optimization)
    assert body.index("self.setup_optimizer_param_groups()") < body.index("self._optimizer_param_groups")


def test_a_schedule_with_a_number_of_steps_needs_no_data() -> None:
    """The steps of the whole training are counted here; NeMo would count them from a loader."""
    optimizer = AVAILABLE_OPTIMIZERS["adamw"]([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = prepare_lr_scheduler(optimizer, {"name": "CosineAnnealing", "max_steps": 7, "t_max_epochs": 2})
    assert schedule["interval"] == "step"
    assert schedule["scheduler"].max_steps == 7
    assert "CosineAnnealing" in AVAILABLE_SCHEDULERS
