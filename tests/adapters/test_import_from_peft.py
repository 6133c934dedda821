# SPDX-License-Identifier: Apache-2.0
"""PEFT adapters as `.nemo`: every key and tensor is used, or refused by name."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.forms.peft import export_peft, import_peft
from nemo_launcher.adapters.forms.peft_config import PeftSettings
from nemo_launcher.errors import UserError
from tests import forms

pytestmark = pytest.mark.unit

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "use_rslora": False}
IA3: dict[str, Any] = {"peft_type": "IA3", "feedforward_modules": ["down_proj"]}
LAYER = "model.layers.0."
WIDE, OUT = 32, {"q_proj": 64, "v_proj": 32}
"""The base's hidden size, and the outputs of its projections: 4 heads of 16, 2 groups."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp("llama"), "llama_head_dim")


def pair(name: str, rank: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random matrices of a module."""
    generator = torch.Generator().manual_seed(seed)
    outputs = OUT[name.rpartition(".")[2]]
    return {
        f"{name}.lora_A.weight": torch.randn(rank, WIDE, generator=generator),
        f"{name}.lora_B.weight": torch.randn(outputs, rank, generator=generator) * 0.3,
    }


def queries_and_values(ranks: tuple[int, int] = (4, 4)) -> dict[str, Tensor]:
    """Return matrices of queries and values of two layers, each with its own first matrix: PEFT's default."""
    tensors = {}
    for layer in (0, 2):
        for number, (name, rank) in enumerate(zip(OUT, ranks, strict=True)):
            tensors |= pair(f"model.layers.{layer}.self_attn.{name}", rank, seed=10 * layer + number)
    return tensors


@pytest.mark.parametrize("use_rslora", [False, True])
def test_own_matrices_of_queries_and_values_become_one_update(use_rslora: bool, base: Path, tmp_path: Path) -> None:
    config = LORA | {"use_rslora": use_rslora, "target_modules": ["q_proj", "v_proj"]}
    folder = forms.write_peft(tmp_path / "peft", config, queries_and_values())
    own, count = import_peft(folder, base, tmp_path / "a.nemo")
    assert own["adapter_tuning"]["adapter_dim"] == 8
    assert own["adapter_tuning"]["layers"] == [0, 2]
    assert count == sum(t.numel() for part in read_adapter(tmp_path / "a.nemo")[1].values() for t in part.values())
    theirs = forms.with_peft_formulas(forms.load_there(base.parent / "hf"), folder)
    forms.assert_close(forms.logits_here(base, tmp_path / "a.nemo"), forms.logits_there(theirs))


def test_ranks_and_alphas_by_pattern_count(base: Path, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.2.self_attn.v_proj": 5, "q_proj": 3}}
    folder = forms.write_peft(tmp_path / "peft", LORA | patterns, queries_and_values((4, 2)))
    import_peft(folder, base, tmp_path / "a.nemo")
    tensors = queries_and_values((4, 2))
    for name in tensors:  # the same update with one rank and alpha of 1: the factor goes into the second matrix
        if "lora_B" in name:
            alpha = 3 if "q_proj" in name else 5 if "layers.2." in name else 6
            tensors[name] = tensors[name] * alpha
    same = forms.write_peft(tmp_path / "same", LORA | {"lora_alpha": 1}, tensors)
    theirs = forms.with_peft_formulas(forms.load_there(base.parent / "hf"), same)
    forms.assert_close(forms.logits_here(base, tmp_path / "a.nemo"), forms.logits_there(theirs))


@pytest.mark.parametrize("pattern", ["q_proj", "^layers.0.q_proj", "^q_proj", "0.q_proj", "s", "l.yers.0.q_proj"])
@pytest.mark.parametrize("module", ["layers.0.q_proj", "0.q_proj", "a.layers.0.q_proj", "xq_proj", "q_proj", "a.s"])
def test_patterns_fit_as_in_peft(pattern: str, module: str) -> None:
    from peft.utils.other import get_pattern_key

    fits = get_pattern_key([pattern], module) == pattern
    assert PeftSettings(method="lora", rank_pattern={pattern: 3}).rank(module) == (3 if fits else 8)


@pytest.mark.parametrize("method", FORMS)
def test_a_torch_file_is_read_like_safetensors(method: str, base: Path, tmp_path: Path) -> None:
    export_peft(forms.make_adapter(tmp_path / "a.nemo", base, method), base, tmp_path / "peft")
    weights = tmp_path / "peft/adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "peft/adapter_model.bin")
    weights.unlink()
    import_peft(tmp_path / "peft", base, tmp_path / "b.nemo")
    first, second = (read_adapter(tmp_path / name)[1] for name in ("a.nemo", "b.nemo"))
    assert all(torch.equal(tensor, second[key][name]) for key, part in first.items() for name, tensor in part.items())


def test_a_query_vector_of_ones_changes_nothing(base: Path, tmp_path: Path) -> None:
    vectors = {f"{LAYER}self_attn.q_proj.ia3_l": torch.ones(64, 1), f"{LAYER}self_attn.k_proj.ia3_l": torch.rand(32, 1)}
    import_peft(forms.write_peft(tmp_path / "peft", IA3, vectors), base, tmp_path / "a.nemo")
    state = read_adapter(tmp_path / "a.nemo")[1]
    key = next(key for key in state if "layers.0.self_attention:key" in key)
    assert torch.equal(state[key]["scalers"], vectors[f"{LAYER}self_attn.k_proj.ia3_l"][:, 0])
    assert all((part["scalers"] == 1).all() for other, part in state.items() if other != key)


# --- refused ----------------------------------------------------------------------------------------------------


def refused(folder: Path, base: Path, output: Path) -> str:
    """Return the message of a refused import, which wrote nothing."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as error:
        import_peft(folder, base, output)
    assert sorted(output.parent.iterdir()) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora: True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: 'all' is not supported"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"something_of_later": 3}, "something_of_later: 3 is not supported"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 0}, "r: 0 is not a whole number"),
        ({"r": True}, "r: True is not a whole number"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"rank_pattern": {"(a+)+": 3}}, "rank_pattern"),
        ({"rank_pattern": {f"{number}_proj": 3 for number in range(20_000)}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": float("1e300")}}, "alpha_pattern"),
    ],
)
def test_settings_without_an_equal_are_named(changes: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    folder = forms.write_peft(tmp_path / "peft", LORA | changes, queries_and_values())
    assert words in refused(folder, base, tmp_path / "a.nemo")


NAN = pair(f"{LAYER}self_attn.q_proj", 4)
NAN[f"{LAYER}self_attn.q_proj.lora_B.weight"][3, 1] = torch.nan


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        (IA3, {f"{LAYER}self_attn.q_proj.ia3_l": torch.full((64, 1), 1.5)}, "scales keys, values and activations"),
        (IA3, {f"{LAYER}mlp.up_proj.ia3_l": torch.full((1, 32), 1.5)}, "up_proj: has a vector that is not 1"),
        (IA3, {f"{LAYER}self_attn.k_proj.ia3_l": torch.ones(64, 1)}, "neither [32, 1] nor [1, 32]"),
        (LORA, pair(f"{LAYER}self_attn.q_proj", 3), "rank 4 needs (4, 32) and (64, 4)"),
        (LORA, {f"{LAYER}self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, "lacks .lora_B.weight"),
        (LORA, {"lm_head.lora_A.weight": torch.ones(4, 32), "lm_head.lora_B.weight": torch.ones(1, 4)}, "lm_head"),
        (LORA, {"model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}, "updates an embedding"),
        (LORA, {f"{LAYER}self_attn.q_proj.lora_magnitude_vector": torch.ones(64)}, "is of DoRA"),
        (LORA, {"transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 32)}, "is no linear layer of this base"),
        (LORA, {f"{LAYER}self_attn.q_proj.lora_A.weight": torch.ones(4, 32).int()}, "I32"),
        (LORA, NAN, "NaN or infinite"),
        (IA3, {f"{LAYER}self_attn.k_proj.ia3_l": torch.full((32, 1), torch.nan)}, "32 of 32 values are NaN"),
        (IA3, {f"{LAYER}self_attn.k_proj.ia3_l": torch.ones(32, 1).double() * 1e300}, "32 of 32 values are NaN"),
        (LORA, {f"{LAYER}self_attn.q_proj.lora_A.weight": torch.ones(0, 32)}, "lacks .lora_B.weight"),
    ],
)
def test_tensors_without_a_place_are_named(
    config: dict[str, Any], tensors: dict[str, Tensor], words: str, base: Path, tmp_path: Path
) -> None:
    folder = forms.write_peft(tmp_path / "peft", config, tensors)
    assert words in refused(folder, base, tmp_path / "a.nemo")


def test_ranks_that_pad_too_much_are_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_launcher.adapters.forms.lora._ALWAYS", 0)
    tensors = pair(f"{LAYER}self_attn.q_proj", 64)
    for layer in (0, 1, 2):
        tensors |= pair(f"model.layers.{layer}.self_attn.v_proj", 1, seed=layer)
        tensors[f"model.layers.{layer}.mlp.up_proj.lora_A.weight"] = torch.ones(1, WIDE)
        tensors[f"model.layers.{layer}.mlp.up_proj.lora_B.weight"] = torch.ones(48, 1)
    monkeypatch.setattr("nemo_launcher.adapters.forms.lora._MOST_PADDING", 2)
    pattern = {"r": 1, "rank_pattern": {"q_proj": 64}}
    folder = forms.write_peft(tmp_path / "peft", LORA | pattern, tensors)
    assert "ranks so different" in refused(folder, base, tmp_path / "a.nemo")


class Runs:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_torch_file_is_executed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = forms.write_peft(tmp_path / "peft", LORA, queries_and_values())
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.x": Runs()}, folder / "adapter_model.bin")
    assert "not executed" in refused(folder, base, tmp_path / "a.nemo")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Runs()))
    assert "adapter_model.bin" in refused(folder, base, tmp_path / "a.nemo")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "is a list, not an object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds neither"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64), "not a safetensors file"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("version https://git-lfs"), "LFS pointer"),
        (
            lambda folder: (
                (folder / "adapter_model.safetensors").unlink(),
                (folder / "adapter_model.safetensors").symlink_to("/dev/zero"),
            ),
            "is a device or pipe",
        ),
        (
            lambda folder: (
                (folder / "adapter_config.json").unlink(),
                (folder / "adapter_config.json").symlink_to("/dev/zero"),
            ),
            "is a device or pipe",
        ),
    ],
)
def test_damaged_folders_are_named(change: Any, words: str, base: Path, tmp_path: Path) -> None:
    folder = forms.write_peft(tmp_path / "peft", LORA, queries_and_values())
    change(folder)
    assert words in refused(folder, base, tmp_path / "a.nemo")


def test_a_link_to_the_weights_is_followed(base: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    folder = forms.write_peft(tmp_path / "peft", LORA, queries_and_values())
    (folder / "adapter_model.safetensors").rename(tmp_path / "blob")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "blob")
    import_peft(folder, base, tmp_path / "a.nemo")
    assert (tmp_path / "a.nemo").exists()
