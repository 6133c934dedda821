# SPDX-License-Identifier: Apache-2.0
"""Conversion of a multi-modal model's language model: files of other kinds, its tokenizer, and refusals in the job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.conformance.families.models import FAMILIES, save
from tests.engine import logits_of

pytestmark = pytest.mark.unit

TOWER = "vision_tower.encoder.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma") / "hf"
    save(folder, FAMILIES["images-gemma3-plain"])
    return folder


def changed(
    source: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **settings: Any
) -> Path:
    """Return a copy of a folder with other tensors and settings."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return folder


def refused(folder: Path, told: str) -> None:
    """Convert a folder, which must be refused with this text, and without any file written."""
    target = folder.parent / "results/base.nemo"
    with pytest.raises(UserError) as error:
        convert(folder, target, language_model=True)
    assert told in str(error.value)
    assert not list(target.parent.glob("*"))


def test_a_repeated_conversion_does_nothing_and_the_base_knows_its_origin(
    gemma: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(gemma, tmp_path / "base.nemo", language_model=True)
    assert "is taken without 34 tensors of its other parts" in capsys.readouterr().out
    assert not convert(gemma, tmp_path / "base.nemo", language_model=True)
    origin: Any = read_config(tmp_path / "base.nemo")["converted_from"]
    assert origin["language_model_of"] == "Gemma3ForConditionalGeneration"
    assert origin["configuration"]["architectures"] == ["Gemma3ForCausalLM"]
    with pytest.raises(UserError, match="also sees images"):
        convert(gemma, tmp_path / "other.nemo")
    assert not (tmp_path / "other.nemo").exists()


def test_values_of_the_other_parts_do_not_matter(gemma: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights | {TOWER: torch.full((16, 16), torch.nan), "vision_tower.ids": torch.arange(4)}

    convert(gemma, tmp_path / "base.nemo", language_model=True)
    convert(changed(gemma, tmp_path / "hf", spoil), tmp_path / "spoilt.nemo", language_model=True)
    wanted, found = (load_base(tmp_path / f"{name}.nemo") for name in ("base", "spoilt"))
    assert found.fingerprint == wanted.fingerprint


def test_weights_in_fp8_are_read_with_their_scales(gemma: Path, tmp_path: Path) -> None:
    def quantize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "language_model.model.layers.0.mlp.up_proj.weight"
        scale = {f"{name}_scale_inv": torch.full((3, 2), 0.5)}
        return weights | {name: (2 * weights[name]).to(torch.float8_e4m3fn)} | scale

    section = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    convert(gemma, tmp_path / "base.nemo", language_model=True)
    convert(
        changed(gemma, tmp_path / "hf", quantize, quantization_config=section), tmp_path / "8.nemo", language_model=True
    )
    wanted, found = (logits_of(load_base(tmp_path / f"{name}.nemo"), IDS) for name in ("base", "8"))
    torch.testing.assert_close(found, wanted, atol=0.5, rtol=0)
    assert not torch.equal(found, wanted)


def test_the_chat_template_of_its_processor_is_that_of_the_base(gemma: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gemma, tmp_path / "hf")
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    convert(folder, tmp_path / "base.nemo", language_model=True)
    chat = load_base(tmp_path / "base.nemo").tokenizer.chat
    assert chat is not None
    assert chat.prompt([{"role": "user", "content": "Hi"}], "a record") == "<Hi>"
    (folder / "chat_template.json").write_text('{"chat_template": [1]}')
    refused(folder, "chat_template.json: has no text chat_template")


def test_a_head_that_is_absent_but_not_tied_is_missed(gemma: Path, tmp_path: Path) -> None:
    folder = changed(gemma, tmp_path / "hf", lambda weights: weights, tie_word_embeddings=False)
    refused(folder, "1 of 55 weights of Gemma3ForCausalLM are missing: lm_head.weight")


def test_a_head_that_differs_although_both_keys_tie_it_is_refused(gemma: Path, tmp_path: Path) -> None:
    embedding = "language_model.model.embed_tokens.weight"
    folder = changed(gemma, tmp_path / "hf", lambda w: w | {"language_model.lm_head.weight": w[embedding] + 1})
    refused(folder, "but config.json ties them (tie_word_embeddings)")


def test_pickles_are_sorted_alike(tmp_path: Path) -> None:
    save(tmp_path / "hf", FAMILIES["images-mistral3-pickle"])
    path = tmp_path / "hf/pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    for other, told in (
        ("language_model.model.norm.weight", "tensors have names of two layouts"),
        ("audio_tower.weight", "1 tensors belong neither to its language model nor to its other parts: audio_tower"),
    ):
        torch.save(weights | {other: torch.ones(4)}, path)
        refused(tmp_path / "hf", told)
    torch.save(weights | {"model.vision_tower.ids": torch.arange(4)}, path)
    assert convert(tmp_path / "hf", tmp_path / "base.nemo", language_model=True)
