# SPDX-License-Identifier: Apache-2.0
"""Adapters of a multi-modal model's language model: out to PEFT, which loads them on the whole model, and in again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.forms.folded import export_folded
from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.forms.peft import export_peft, import_peft
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from tests import forms
from tests.conformance.families.models import FAMILIES, save

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=["images-gemma3-plain", "images-mistral3-plain"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save(folder / "hf", FAMILIES[request.param])
    convert(folder / "hf", folder / "base.nemo", language_model=True)
    return folder / "base.nemo"


@pytest.mark.parametrize("method", FORMS)
def test_peft_loads_it_on_the_whole_model_and_it_comes_back(method: str, base: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method)
    export_peft(adapter, base, tmp_path / "out")
    whole = AutoModelForImageTextToText.from_pretrained(base.parent / "hf").eval()
    with_adapter = PeftModel.from_pretrained(whole, tmp_path / "out")
    changed = {name for name, _ in with_adapter.named_parameters() if "lora_" in name or "ia3_" in name}
    assert changed
    assert all(".language_model.layers." in name for name in changed)
    vocabulary = whole.config.text_config.vocab_size
    wanted = forms.logits_here(base, adapter)[:, :vocabulary]
    with torch.no_grad():
        found = with_adapter(forms.IDS).logits[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert not torch.allclose(wanted, forms.logits_here(base)[:, :vocabulary], atol=1e-2)
    assert "AutoModelForImageTextToText.from_pretrained" in ModelCard.load(tmp_path / "out/README.md").text

    import_peft(tmp_path / "out", base, tmp_path / "again.nemo")
    again = forms.logits_here(base, tmp_path / "again.nemo")[:, :vocabulary]
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=0)


def test_adapters_with_other_names_are_read_alike(base: Path, tmp_path: Path) -> None:
    export_peft(forms.make_adapter(tmp_path / "a.nemo", base, "lora"), base, tmp_path / "out")
    path = tmp_path / "out/adapter_model.safetensors"
    config = tmp_path / "out/adapter_config.json"
    tensors = load_file(path)
    whole = "base_model.model.model.language_model."
    module = next(name for name in tensors if name.endswith("q_proj.lora_A.weight")).removesuffix(".lora_A.weight")
    inner = module.removeprefix("base_model.model.")
    settings = json.loads(config.read_text())
    alphas = {"alpha_pattern": {inner: 3 * settings["lora_alpha"]}}
    for number, start in enumerate(("base_model.model.language_model.model.", "base_model.model.model.")):
        save_file({name.replace(whole, start): tensor for name, tensor in tensors.items()}, path)
        import_peft(tmp_path / "out", base, tmp_path / f"{number}.nemo")
    save_file(tensors, path)
    import_peft(tmp_path / "out", base, tmp_path / "whole.nemo")
    wanted = read_adapter(tmp_path / "whole.nemo")[1]
    for number in range(2):
        torch.testing.assert_close(read_adapter(tmp_path / f"{number}.nemo")[1], wanted)
    config.write_text(json.dumps(settings | alphas))  # a pattern has the name in the whole model
    import_peft(tmp_path / "out", base, tmp_path / "scaled.nemo")
    assert not torch.equal(
        forms.logits_here(base, tmp_path / "scaled.nemo"), forms.logits_here(base, tmp_path / "whole.nemo")
    )


def test_adapters_of_the_other_parts_and_twofold_ones_are_refused(base: Path, tmp_path: Path) -> None:
    export_peft(forms.make_adapter(tmp_path / "a.nemo", base, "lora"), base, tmp_path / "out")
    path = tmp_path / "out/adapter_model.safetensors"
    tensors = load_file(path)
    name, tensor = next(iter(tensors.items()))
    for other, told in (
        (name.replace("language_model", "vision_tower"), "is no linear layer of this base"),
        (name.replace("model.language_model.", "language_model.model."), "under another name"),
    ):
        save_file(tensors | {other: tensor.clone()}, path)
        with pytest.raises(UserError, match=told):
            import_peft(tmp_path / "out", base, tmp_path / "in.nemo")
        assert not (tmp_path / "in.nemo").exists()


def test_its_own_folder_is_that_of_a_text_model(base: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, "lora")
    export_folded(adapter, base, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    config = json.loads((base.parent / "hf/config.json").read_text())
    assert model.config.model_type == config["text_config"]["model_type"]
    with torch.no_grad():
        found = model(forms.IDS).logits[0]
    torch.testing.assert_close(found, forms.logits_here(base, adapter)[:, : found.size(1)], atol=1e-4, rtol=0)
    whole = config["architectures"][0]
    assert f"| part of the base model | the language model of {whole} |" in (tmp_path / "out/README.md").read_text()
