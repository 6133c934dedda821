# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: what adapters may do in them, and configurations that are not computed.

tests/conformance/families compares their logits, gradients, tokens and exports with transformers.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.forms.peft import export_peft, import_peft
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.adapters.settings import trainable_parameters
from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.launcher.base_sizes import base_of, stacks_of
from tests import forms
from tests.conformance.families.models import FAMILIES, save
from tests.engine import gradients_of, random_tree, randomize
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    save(folder / "hf", FAMILIES["mixtral-plain"])
    convert(folder / "hf", folder / "base.nemo")
    return folder / "base.nemo"


@pytest.fixture
def base(path: Path) -> Base:
    return load_base(path)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_or_names_what_it_lacks(method: str, base: Base) -> None:
    section = model_section(method)
    if settings_of(section).expert_problems("model"):
        with pytest.raises(UserError, match="target_modules: mlp_fc1 and mlp_fc2: the base is a mixture of experts"):
            AdapterSet(base.model, base.shape, section)
        section["adapter_tuning"]["target_modules"] = ["attention"]
    adapters = AdapterSet(base.model, base.shape, section)
    assert adapters.absent == (["mlp_infused_adapter"] if method == "ia3" else [])
    stacks = base.family.stack_shapes(base.shape)
    assert trainable_parameters(settings_of(section), stacks, has_experts=True) == adapters.num_parameters()
    randomize(adapters)
    samples = random_tree(3, 300, count=6, max_length=50)
    loss, shared, _ = gradients_of(base, adapters, samples, micro_batch_size=6)
    alone_loss, alone, _ = gradients_of(base, adapters, samples, micro_batch_size=6, share_prefix=False)
    assert loss == pytest.approx(alone_loss, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in alone.values())
    assert scale > 0
    for name, gradient in alone.items():
        torch.testing.assert_close(shared[name], gradient, rtol=0, atol=1e-4 * scale)


def test_the_estimate_knows_the_parameters_of_the_layers(path: Path, base: Base) -> None:
    outline = read_outline(path)
    stacks = stacks_of(outline)
    assert stacks is not None
    assert stacks["decoder"].experts == 4
    found = base_of(outline, stacks)
    assert found is not None
    assert found.parameters.layers == sum(p.numel() for p in base.model.decoder.layers.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe_router_topk": 5}, "moe_router_topk: 5 is not a number from 1 to 4"),
        ({"moe_router_score_function": "sigmoid"}, "moe_router_score_function: 'sigmoid' is not supported"),
        ({"moe_shared_expert_intermediate_size": 64}, "moe_shared_expert_intermediate_size: 64 is not supported"),
        ({"moe_layer_freq": [0, 1, 1, 1]}, "moe_layer_freq: "),
        ({"bias": True}, "bias: is not supported with experts"),
    ],
)
def test_other_mixtures_are_refused(changes: dict[str, Any], words: str, path: Path) -> None:
    with pytest.raises(UserError) as error:
        GPTShape.from_config(read_config(path) | changes, vocab_size=300, source="base")
    assert words in str(error.value)


def test_a_number_of_experts_that_the_weights_do_not_have(path: Path, tmp_path: Path) -> None:
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    config = read_config(path) | {"num_moe_experts": 1 << 15}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="num_moe_experts: is 32,768, but the weights have 4 experts"):
        load_base(tmp_path)


@pytest.mark.parametrize("method", FORMS)
def test_peft_loads_it_and_gives_it_back(method: str, path: Path, tmp_path: Path) -> None:
    inner = settings_of(model_section(method)).expert_problems("model")
    changes = {"target_modules": ["attention"]} if inner else {}
    adapter = forms.make_adapter(tmp_path / "a.nemo", path, method, **changes)
    export_peft(adapter, path, tmp_path / "peft")
    model = PeftModel.from_pretrained(forms.load_there(path.parent / "hf"), tmp_path / "peft").eval()
    forms.assert_close(forms.logits_here(path, adapter), forms.logits_there(model))
    model.save_pretrained(tmp_path / "saved")
    import_peft(tmp_path / "saved", path, tmp_path / "b.nemo")
    forms.assert_close(forms.logits_here(path, tmp_path / "b.nemo"), forms.logits_here(path, adapter))
