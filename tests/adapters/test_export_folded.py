# SPDX-License-Identifier: Apache-2.0
"""A base with an adapter in its weights: transformers alone gives our logits and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.adapters.forms.folded import export_folded
from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.conversion.convert import convert
from nemo_launcher.data.tokenizer_export import write_tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests import forms
from tests.checkpoint.conversions import sentencepiece_model
from tests.methods import model_section
from tests.versions import needs_transformers

pytestmark = pytest.mark.unit

METHODS = tuple(FORMS)
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": 10_000, "use_cache": False}
"""Eight tokens; transformers' cache needs as many decoder as encoder layers."""


@pytest.fixture(scope="module", params=forms.BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forms.make_base(tmp_path_factory.mktemp("llama"), "llama_head_dim")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("method", METHODS)
def test_transformers_gives_our_logits_and_answers(base: Path, method: str, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, method)
    export_folded(adapter, base, tmp_path / "out")
    model = forms.load_there(tmp_path / "out")
    ours = forms.logits_here(base, adapter)
    forms.assert_close(ours, forms.logits_there(model))
    assert (ours - forms.logits_here(base)).abs().max() > 0.05 * ours.abs().max()

    there = model.generate(forms.IDS[:, :20], **EIGHT)[0, -8:]
    assert there.tolist() == forms.greedy_here(base, adapter, 8)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").encode("anna: boris", add_special_tokens=False)
    assert ids == load_base(base).tokenizer.text_to_ids("anna: boris")


def test_an_adapter_without_effect_gives_the_source_bit_by_bit(base: Path, tmp_path: Path) -> None:
    loaded = load_base(base)
    config = model_section(METHODS[0])
    own = config | {"language_model_path": str(base), "base_fingerprint": loaded.fingerprint}
    save_adapter(tmp_path / "a.nemo", own, AdapterSet(loaded.model, loaded.shape, config).state_dict())
    export_folded(tmp_path / "a.nemo", base, tmp_path / "out")
    source, written = weights_of(base.parent / "hf"), weights_of(tmp_path / "out")
    scaled = "decoder.final_layer_norm.weight" if "lm_head.weight" in written.keys() - source.keys() else None
    for name, tensor in source.items():
        if name == scaled:  # the original T5 scales the decoder's output; here the norm does
            torch.testing.assert_close(written[name], tensor * tensor.numel() ** -0.5, rtol=1e-6, atol=0)
        else:
            assert torch.equal(written[name], tensor), name
    assert written.keys() - source.keys() <= {"lm_head.weight"}
    convert(tmp_path / "out", tmp_path / "again.nemo")
    assert load_base(tmp_path / "again.nemo").checksum == loaded.checksum


def test_parts_of_limited_size_hold_the_same(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, METHODS[-1])
    export_folded(adapter, base, tmp_path / "one")
    monkeypatch.setattr("nemo_launcher.adapters.forms.folded.FILE_BYTES", 16_000)
    export_folded(adapter, base, tmp_path / "many")
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    one, many = weights_of(tmp_path / "one"), weights_of(tmp_path / "many")
    assert len(set(index["weight_map"].values())) > 3
    assert index["weight_map"].keys() == many.keys() == one.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    forms.assert_close(forms.logits_here(base, adapter), forms.logits_there(forms.load_there(tmp_path / "many")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folding_is_in_32_bits(llama: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", llama, METHODS[-1])
    export_folded(adapter, llama, tmp_path / "exact")
    export_folded(adapter, llama, tmp_path / "short", dtype)
    exact, short = weights_of(tmp_path / "exact"), weights_of(tmp_path / "short")
    assert all(torch.equal(exact[name].to(dtype), tensor) for name, tensor in short.items())
    assert json.loads((tmp_path / "short/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_values_beyond_the_type_are_refused(llama: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", llama, METHODS[-1], alpha=1e8)
    with pytest.raises(UserError, match="beyond the range of float16"):
        export_folded(adapter, llama, tmp_path / "out", torch.float16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nemo"]


def test_the_card_says_what_it_was_made_from(llama: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", llama, METHODS[0])
    record = {
        "base": {"checksum": load_base(llama).checksum},
        "data": {"train_ds": [{"path": "/data/own.jsonl", "sha256": "ab12"}]},
    }
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    export_folded(adapter, llama, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert f"| fingerprint of the base | {load_base(llama).fingerprint} |" in card
    assert f"| method | {METHODS[0]} |" in card
    assert "library_name: transformers" in card
    assert "| train_ds | own.jsonl, sha256 ab12 |" in card
    assert (tmp_path / "out/model.safetensors").stat().st_mode == (tmp_path / "out/config.json").stat().st_mode
    assert str(tmp_path) not in card
    assert str(llama.parent) not in card


def test_a_tokenizer_with_other_ids_is_left_out(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nemo_launcher.data.tokenizer_export._difference", lambda *_: "other ids")
    export_folded(forms.make_adapter(tmp_path / "a.nemo", llama, METHODS[0]), llama, tmp_path / "out")
    assert "The folder has no tokenizer: other ids." in capsys.readouterr().out
    assert not any("token" in path.name for path in (tmp_path / "out").iterdir())


@needs_transformers("5", "gives the same ids")
def test_a_tokenizer_that_transformers_reads_otherwise_is_left_out(tmp_path: Path) -> None:
    """transformers splits spaces and line breaks otherwise than this SentencePiece model."""
    section = {"library": "sentencepiece", "type": None, "model": "nemo:tokenizer.model"}
    members = {"tokenizer.model": sentencepiece_model().serialized_model_proto(), "model_weights.ckpt": b"x"}
    write_archive(tmp_path / "base.nemo", {"num_layers": 1, "tokenizer": section}, members)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text('{"model_type": "llama"}')
    assert "transformers gives other ids" in str(write_tokenizer(tmp_path / "base.nemo", tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
