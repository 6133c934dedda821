# SPDX-License-Identifier: Apache-2.0
"""inspect: identification of an archive without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters.archive import read_adapter, save_adapter, save_safetensors
from nemo_launcher.adapters.forms.adapterhub import export_adapterhub
from nemo_launcher.adapters.forms.peft import export_peft
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from tests import forms, oracle
from tests.cli.conftest import Run
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def facts_of(run: Run, path: Path) -> dict[str, Any]:
    result = run("inspect", path, "--json")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_base_and_adapter_name_each_other(run: Run, tiny_base: Path, adapter: Path) -> None:
    base, facts = facts_of(run, tiny_base), facts_of(run, adapter)
    assert (base["kind"], base["layout"], base["tokenizer_inside"]) == ("GPT base model", "NeMo mcore", True)
    assert facts["kind"] == "adapter for a GPT model"
    assert facts["method"] == "parallel_adapter"
    assert facts["base"] == str(tiny_base)
    assert facts["base_fingerprint"] == base["fingerprint"]
    assert len(facts["adapters"]) == 4
    assert facts["trainable_parameters"] == 4 * (2 * 4 * 32 + 2 * 32)


def test_the_copy_and_pefts_folder_are_described_alike(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    nemo = forms.make_adapter(tmp_path / "a.nemo", tiny_base, "lora")
    save_safetensors(tmp_path / "a.safetensors", *read_adapter(nemo))
    export_peft(nemo, tiny_base, tmp_path / "peft")
    facts, copy, peft = (facts_of(run, path) for path in (nemo, tmp_path / "a.safetensors", tmp_path / "peft"))
    different = {key for key in facts if facts[key] != copy[key]}
    assert different == {"file", "bytes"}
    assert facts.keys() == copy.keys() == peft.keys()
    assert (peft["kind"], peft["method"]) == ("PEFT adapter (CAUSAL_LM)", "lora")
    assert peft["adapters"]["model.layers.0.self_attn.q_proj.lora_A.weight"] == {"shape": [4, 32]}
    assert run("inspect", tmp_path / "peft").status == 0


def test_adapterhubs_folder_is_described_like_pefts(run: Run, tmp_path: Path) -> None:
    base = forms.make_base(tmp_path, "llama_head_dim")
    export_adapterhub(forms.make_adapter(tmp_path / "a.nemo", base, "parallel_adapter"), base, tmp_path / "hub")
    facts = facts_of(run, tmp_path / "hub")
    assert facts.keys() == facts_of(run, tmp_path / "a.nemo").keys()
    assert (facts["kind"], facts["method"]) == ("AdapterHub adapter (LlamaForCausalLM)", "bottleneck")
    assert facts["adapters"]["model.layers.0.output_adapters.adapters.adapter.adapter_up.weight"] == {"shape": [32, 4]}


def test_people_get_one_line_for_all_layers(run: Run, adapter: Path) -> None:
    result = run("inspect", adapter)
    assert result.status == 0, result.err
    assert "2 x model.language_model.encoder.layers.N:adapter_1: linear_in.weight [4, 32]" in result.out
    assert "layers.0" not in result.out


def test_texts_of_the_file_cannot_control_the_terminal(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    config, state = read_adapter(forms.make_adapter(tmp_path / "a.nemo", tiny_base, "ia3"))
    template = {"taskname": "a\x1b[2J\nkind   none", "prompt_template": "{x}"}
    save_adapter(tmp_path / "b.nemo", config | {"task_templates": [template]}, state)
    plain, shown = (run("inspect", tmp_path / name).out for name in ("a.nemo", "b.nemo"))
    assert "a\\x1b[2J\\nkind   none" in shown
    assert len(shown.splitlines()) == len(plain.splitlines())


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_nemos_shards_are_the_whole_model(family: str, run: Run) -> None:
    one, two = (facts_of(run, shared_path(f"oracle/base_{family}{size}.nemo")) for size in ("", "_tp2"))
    assert one["kind"] == f"{family.upper()} base model"
    assert (one["layout"], one["tokenizer"], one["tokenizer_inside"]) == ("NeMo legacy", "sentencepiece", True)
    assert (one["tensor_model_parallel_size"], two["tensor_model_parallel_size"]) == (1, 2)
    different = ("file", "bytes", "tensor_model_parallel_size", "parameters", "embedding_rows")
    assert {k: v for k, v in one.items() if k not in different} == {k: v for k, v in two.items() if k not in different}


@pytest.mark.parametrize(("kind", "family"), [("ia3", "t5"), ("linear", "gpt")])
def test_nemos_adapters_are_told(kind: str, family: str, run: Run) -> None:
    facts = facts_of(run, shared_path(f"oracle/{kind}_{family}.nemo"))
    assert (facts["method"], facts["kind"]) == (oracle.KINDS[kind], f"adapter for a {family.upper()} model")
    assert facts["tasks"] == ["toy"]
    assert facts["base_fingerprint"] is None


def test_the_parameters_are_those_of_the_model(run: Run, tiny_base: Path) -> None:
    from nemo_launcher.families.base import load_base

    model = load_base(tiny_base).model
    assert facts_of(run, tiny_base)["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_base_without_its_tokenizer_is_told_all_the_same(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    with Archive(tiny_base) as archive:
        members = {name: archive.open(name).read() for name in archive.names if name == "model_weights.ckpt"}
        write_archive(tmp_path / "a.nemo", archive.config(), members)
    assert facts_of(run, tmp_path / "a.nemo")["tokenizer_inside"] is False


@pytest.mark.parametrize("content", [None, b"", b"no archive" * 200])
def test_what_is_no_archive_is_refused(content: bytes | None, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.nemo").write_bytes(content)
    assert str(tmp_path / "a.nemo") in run("inspect", tmp_path / "a.nemo").refused()
