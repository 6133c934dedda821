# SPDX-License-Identifier: Apache-2.0
"""`adapter_tuning.type` on the command line: the shipped file's settings are dropped, the user's own are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from nemo_launcher.launcher.other_types import without_other_types
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

BLOCK = "adapter_learning.model.adapter_tuning"
Launch = Callable[..., Result]
SHIPPED = {"adapter_dim": 16, "adapter_dropout": 0.1, "column_init_method": "xavier", "row_init_method": "zero"}


def block_of(workplace: Workplace) -> dict[str, Any]:
    (file,) = workplace.results.rglob("*_hydra.yaml")
    return yaml.safe_load(file.read_text())["model"]["adapter_tuning"]


def test_a_type_needs_no_other_key(launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, f"{BLOCK}.type=lora", "debug=True")
    assert result.status == 0, result.err
    own = {"alpha": None, "dropout_position": "post", "target_modules": ["attention_qkv"]}
    assert block_of(workplace) == SHIPPED | own | {"type": "lora"}


def test_its_settings_are_set_from_the_command_line(launch: Launch, workplace: Workplace) -> None:
    given = [f"{BLOCK}.alpha=32", f"+{BLOCK}.target_modules=[attention,mlp]", f"{BLOCK}.adapter_dim=8"]
    result = launch(*workplace.arguments, f"{BLOCK}.type=lora", *given, "debug=True")
    assert result.status == 0, result.err
    block = block_of(workplace)
    assert (block["alpha"], block["target_modules"], block["adapter_dim"]) == (32, ["attention", "mlp"], 8)


@pytest.mark.parametrize("value", ["pre", "post"])
def test_a_setting_of_another_type_that_the_user_gives_is_told(launch: Launch, workplace: Workplace, value: str):
    result = launch(*workplace.arguments, f"{BLOCK}.type=lora", f"{BLOCK}.norm_position={value}", "debug=True")
    assert result.status == 2
    assert f"{BLOCK}.norm_position (command line): is a setting of parallel_adapter and linear_adapter" in result.err
    assert f"{BLOCK}.type=parallel_adapter" in result.err
    assert "norm_type" not in result.err


def test_a_setting_of_lora_is_told_where_the_type_is_another(launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, f"+{BLOCK}.alpha=32", "debug=True")
    assert result.status == 2
    assert f"{BLOCK}.alpha (command line): is a setting of lora, and type is parallel_adapter" in result.err
    assert f"{BLOCK}.type=lora" in result.err


def test_what_a_file_of_the_users_sets_stays() -> None:
    block = {"type": "lora", "adapter_dim": 8, "norm_position": "post", "norm_type": "mixedfusedlayernorm"}
    found = without_other_types({"model": {"adapter_tuning": block | {"lr": 1}}}, [])
    assert found["model"]["adapter_tuning"] == {"type": "lora", "adapter_dim": 8, "norm_position": "post", "lr": 1}
