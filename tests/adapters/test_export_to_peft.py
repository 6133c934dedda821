# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT's folders, and back: PEFT's logits on the Hugging Face model are ours with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.forms.peft import export_peft, import_peft, short_names
from nemo_launcher.adapters.registry import methods
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, read_config
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from tests import forms

pytestmark = pytest.mark.unit

ELSEWHERE = tuple(name for name in methods() if name not in FORMS)
LAYERS: dict[str, Any] = {"llama_head_dim": "1-2", "t5": {"encoder": "none", "decoder": [0, 2]}}


@pytest.fixture(scope="module", params=forms.BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp("llama"), "llama_head_dim")


@pytest.mark.parametrize("method", FORMS)
def test_the_formulas_of_peft_give_our_logits(base: Path, method: str, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method)
    export_peft(adapter, base, tmp_path / "peft")
    theirs = forms.load_there(base.parent / "hf")
    before, ours = forms.logits_there(theirs), forms.logits_here(base, adapter)
    after = forms.logits_there(forms.with_peft_formulas(theirs, tmp_path / "peft"))
    forms.assert_close(ours, after)
    assert (after - before).abs().max() > 0.05 * before.abs().max()


@pytest.mark.parametrize("method", FORMS)
def test_peft_itself_loads_it(base: Path, method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method)
    export_peft(adapter, base, tmp_path / "peft")
    model = peft.PeftModel.from_pretrained(forms.load_there(base.parent / "hf"), tmp_path / "peft").eval()
    forms.assert_close(forms.logits_here(base, adapter), forms.logits_there(model))
    forms.assert_close(forms.logits_here(base, adapter), forms.logits_there(model.merge_and_unload()))


@pytest.mark.parametrize("method", FORMS)
def test_what_peft_saves_comes_back_as_the_same_adapter(base: Path, method: str, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method)
    export_peft(adapter, base, tmp_path / "peft")
    import_peft(tmp_path / "peft", base, tmp_path / "b.nemo")
    first, second = (read_adapter(tmp_path / name)[1] for name in ("a.nemo", "b.nemo"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key][name]) for key, part in first.items() for name, tensor in part.items())


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_chosen_layers_stay_chosen(name: str, method: str, tmp_path: Path) -> None:
    base = forms.make_base(tmp_path, name)
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method, layers=LAYERS[name])
    export_peft(adapter, base, tmp_path / "peft")
    theirs = forms.with_peft_formulas(forms.load_there(tmp_path / "hf"), tmp_path / "peft")
    forms.assert_close(forms.logits_here(base, adapter), forms.logits_there(theirs))
    config, _ = import_peft(tmp_path / "peft", base, tmp_path / "b.nemo")
    assert read_adapter(tmp_path / "b.nemo")[1].keys() == read_adapter(adapter)[1].keys()
    assert "layers" in next(value for key, value in config.items() if key in ("adapter_tuning", "ia3_tuning"))


def test_short_names_fit_no_other_module() -> None:
    every = [f"h.{layer}.{name}" for layer in range(2) for name in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
    assert short_names(["h.0.mlp.c_proj", "h.1.mlp.c_proj"], every) == ["mlp.c_proj"]
    assert short_names(every, every) == ["c_proj", "c_fc"]
    assert short_names(["h.1.mlp.c_fc"], every) == ["h.1.mlp.c_fc"]


def test_an_archive_of_two_ranks_gives_the_same_folder(llama: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", llama, "ia3")
    config, state = read_adapter(adapter)
    ranks = [{key: {"scalers": part["scalers"].chunk(2)[rank]} for key, part in state.items()} for rank in range(2)]
    files = {
        f"mp_rank_{rank:02}/{WEIGHTS_NAME}": lambda stream, part=part: torch.save(part, stream)
        for rank, part in enumerate(ranks)
    }
    write_archive(tmp_path / "ranks.nemo", config | {"tensor_model_parallel_size": 2}, files)
    for name in ("a", "ranks"):
        export_peft(tmp_path / f"{name}.nemo", llama, tmp_path / name)
    written = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "ranks")]
    assert written[0] == written[1]


# --- refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ELSEWHERE)
def test_adapters_that_add_layers_are_refused(llama: Path, method: str, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", llama, method)
    with pytest.raises(UserError, match=f"holds a {method}, which adds layers"):
        export_peft(adapter, llama, tmp_path / "peft")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nemo"]


def test_an_adapter_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    other = forms.make_base(tmp_path, "qwen2_tied")
    adapter = forms.make_adapter(tmp_path / "a.nemo", other, "ia3")
    with pytest.raises(UserError, match="belongs to another base model"):
        export_peft(adapter, llama, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_base_that_no_architecture_computes_is_refused(llama: Path, tmp_path: Path) -> None:
    with Archive(llama) as archive:
        stored = read_tensors(archive, WEIGHTS_NAME)
        tokenizer = {name: archive.read(name, 1 << 24) for name in archive.names if name.startswith("tokenizer/")}
    changed = read_config(llama) | {"activation": "reglu", "rotary_percentage": 0.5}
    members = tokenizer | {WEIGHTS_NAME: lambda stream: torch.save(dict(stored), stream)}
    write_archive(tmp_path / "base.nemo", changed, members)
    adapter = forms.make_adapter(tmp_path / "a.nemo", tmp_path / "base.nemo", "ia3")
    with pytest.raises(UserError, match=r"activation_function relu \(llama has silu\), rotary.percentage 0.5"):
        export_peft(adapter, tmp_path / "base.nemo", tmp_path / "peft")
