# SPDX-License-Identifier: Apache-2.0
"""Merged adapters: LoRA's updates add up, other weights are averaged, and different adapters are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter, save_adapter
from nemo_launcher.adapters.merging import AVERAGE, SUM, merge_adapters
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests import forms
from tests.methods import METHODS, with_setting

pytestmark = pytest.mark.unit

AVERAGED = tuple(method for method in METHODS if method != "lora")


def two(folder: Path, base: Path, method: str, second: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """Write two adapters with different weights; second: settings of the second."""
    first = forms.make_adapter(folder / "a.nemo", base, method)
    other = forms.make_adapter(folder / "b.nemo", base, method, **(second or {}))
    config, state = read_adapter(other)
    generator = torch.Generator().manual_seed(7)
    moved = {
        key: {name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in part.items()}
        for key, part in state.items()
    }
    save_adapter(other, config | {"task_templates": [{"taskname": "second", "prompt_template": "{a}"}]}, moved)
    return first, other


def updates(path: Path) -> dict[str, torch.Tensor]:
    """Return the product of the matrices of each update, with its scale."""
    config, state = read_adapter(path)
    block = config["adapter_tuning"]
    scale = block["alpha"] / block["adapter_dim"]
    return {key: scale * (part["linear_out.weight"] @ part["linear_in.weight"]) for key, part in state.items()}


def test_updates_of_different_ranks_add_up(tiny_base: Path, tmp_path: Path) -> None:
    paths = two(tmp_path, tiny_base, "lora", {"adapter_dim": 6, "alpha": 9.0})
    assert merge_adapters(paths, [0.7, -0.3], tmp_path / "c.nemo") == ("lora", SUM)
    first, second, merged = map(updates, (*paths, tmp_path / "c.nemo"))
    assert read_adapter(tmp_path / "c.nemo")[0]["adapter_tuning"]["adapter_dim"] == 10
    for key, update in merged.items():
        torch.testing.assert_close(update, 0.7 * first[key] - 0.3 * second[key], rtol=0, atol=1e-6)
    load_adapter(tmp_path / "c.nemo", load_base(tiny_base))


def test_one_share_of_all_is_the_adapter_itself(tiny_base: Path, tmp_path: Path) -> None:
    paths = two(tmp_path, tiny_base, "lora")
    merge_adapters(paths, [1, 0], tmp_path / "c.nemo")
    forms.assert_close(forms.logits_here(tiny_base, tmp_path / "c.nemo"), forms.logits_here(tiny_base, paths[0]))


@pytest.mark.parametrize("method", AVERAGED)
def test_other_methods_are_averaged(tiny_base: Path, method: str, tmp_path: Path) -> None:
    paths = two(tmp_path, tiny_base, method)
    assert merge_adapters(paths, [0.7, 0.3], tmp_path / "c.nemo") == (method, AVERAGE)
    first, second, merged = (read_adapter(path)[1] for path in (*paths, tmp_path / "c.nemo"))
    for key, part in merged.items():
        for name, tensor in part.items():
            torch.testing.assert_close(tensor, 0.7 * first[key][name] + 0.3 * second[key][name], rtol=0, atol=1e-6)
    load_adapter(tmp_path / "c.nemo", load_base(tiny_base))


def test_the_configuration_names_tasks_and_parts(tiny_base: Path, tmp_path: Path) -> None:
    merge_adapters(two(tmp_path, tiny_base, "ia3"), [0.5, 0.5], tmp_path / "c.nemo")
    config = read_adapter(tmp_path / "c.nemo")[0]
    assert config["merged_of"] == [{"file": "a.nemo", "weight": 0.5}, {"file": "b.nemo", "weight": 0.5}]
    assert [entry["taskname"] for entry in config["task_templates"]] == ["second"]
    assert config["base_fingerprint"] == load_base(tiny_base).fingerprint


# --- refused ----------------------------------------------------------------------------------------------------


def refused(paths: tuple[Path, Path], weights: list[float], output: Path) -> str:
    """Return the message of a refused merge, which wrote nothing."""
    with pytest.raises(UserError) as error:
        merge_adapters(paths, weights, output)
    assert not output.exists()
    return str(error.value)


def test_different_adapters_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    one, other_method = with_setting("norm_position")
    first = forms.make_adapter(tmp_path / "a.nemo", tiny_base, one)
    output = tmp_path / "c.nemo"
    for name, changes, words in (
        (other_method, {}, f"is a {other_method} adapter"),
        (one, {"adapter_dim": 2}, "adapter_dim: is 2"),
        (one, {"norm_position": "post"}, "norm_position"),
        (one, {"layers": 1}, "is in layers 1"),
    ):
        other = forms.make_adapter(tmp_path / "b.nemo", tiny_base, name, **changes)
        assert words in refused((first, other), [0.5, 0.5], output)
    assert "add up to 1.2" in refused((first, first), [0.7, 0.5], output)


def test_other_bases_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    first, second = two(tmp_path, tiny_base, "lora")
    config, state = read_adapter(second)
    for key, value, words in (
        ("base_fingerprint", "sha256:0", "belongs to another base"),
        ("base_checksum", "sum:0", "belongs to another base"),
        ("base_fingerprint", None, "has no base_fingerprint"),
    ):
        save_adapter(second, config | {key: value}, state)
        assert words in refused((first, second), [0.5, 0.5], tmp_path / "c.nemo")


def test_values_that_are_not_finite_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    first, second = two(tmp_path, tiny_base, "lora")
    config, state = read_adapter(second)
    next(iter(state.values()))["linear_in.weight"][0, 0] = torch.inf
    save_adapter(second, config, state)
    assert "NaN or infinite" in refused((first, second), [0.5, 0.5], tmp_path / "c.nemo")


FIRST, SECOND = "linear_in.weight", "linear_out.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda part: {FIRST: part[FIRST]}, "a rank of 4 needs"),
        (lambda part: {FIRST: part[FIRST], SECOND: part[SECOND][:, :1]}, "a rank of 4 needs"),
        (lambda part: {FIRST: part[FIRST][:2], SECOND: part[SECOND][:, :2]}, "a rank of 4 needs"),
        (lambda part: {FIRST: part[FIRST].flatten(), SECOND: part[SECOND]}, "a rank of 4 needs"),
        (lambda part: part | {"bias": torch.ones(3)}, "a rank of 4 needs"),
        (lambda part: {FIRST: part[FIRST][:, :3], SECOND: part[SECOND]}, f"{{'{FIRST}': (3,)"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_damaged_updates_are_refused(
    damage: Callable[[Any], Any], words: str, first: bool, tiny_base: Path, tmp_path: Path
) -> None:
    paths = two(tmp_path, tiny_base, "lora")
    config, state = read_adapter(paths[0])
    save_adapter(paths[0], config, {key: damage(part) for key, part in state.items()})
    with pytest.raises(UserError) as error:
        merge_adapters(paths if first else paths[::-1], [1, 1], tmp_path / "c.nemo")
    assert words in str(error.value)
    assert not (tmp_path / "c.nemo").exists()


@pytest.mark.parametrize("method", METHODS)
def test_adapters_without_tensors_are_refused(method: str, tiny_base: Path, tmp_path: Path) -> None:
    paths = two(tmp_path, tiny_base, method)
    for path in paths:
        save_adapter(path, read_adapter(path)[0], {})
    with pytest.raises(UserError, match="holds no tensors"):
        merge_adapters(paths, [0.5, 0.5], tmp_path / "c.nemo")


@pytest.mark.parametrize("first", [True, False])
def test_other_tensors_of_an_averaged_adapter_are_refused(first: bool, tiny_base: Path, tmp_path: Path) -> None:
    paths = two(tmp_path, tiny_base, "ia3")
    config, state = read_adapter(paths[0])
    save_adapter(paths[0], config, {key: {} for key in state})
    with pytest.raises(UserError, match=r"holds .*, but"):
        merge_adapters(paths if first else paths[::-1], [0.5, 0.5], tmp_path / "c.nemo")


def test_weights_that_no_tensor_can_hold_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights: give values beyond the range of 32 bits"):
        merge_adapters(two(tmp_path, tiny_base, "lora"), [1e300, 1e300], tmp_path / "c.nemo")
    assert not (tmp_path / "c.nemo").exists()
