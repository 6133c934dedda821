# SPDX-License-Identifier: Apache-2.0
"""export and import: options, output, and refusals that change nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nemo_launcher.conversion.convert import convert
from tests import forms
from tests.cli.conftest import Run

pytestmark = pytest.mark.unit


@pytest.fixture
def ia3(tiny_base: Path, tmp_path: Path) -> Path:
    return forms.make_adapter(tmp_path / "ia3.nemo", tiny_base, "ia3")


def test_an_adapter_goes_out_and_comes_back(run: Run, tiny_base: Path, ia3: Path, tmp_path: Path) -> None:
    out = run("export", ia3, "--base", tiny_base, "--to", "peft", "--output", tmp_path / "peft")
    assert (out.status, out.err) == (0, "")
    assert "ia3 in 6 linear layers of llama; load it with PeftModel.from_pretrained" in out.out
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    back = run("import", tmp_path / "peft", "--base", tiny_base, "--output", tmp_path / "back.nemo")
    assert back.status == 0
    prompts = ("--prompt", "Anna lives near", "--tokens-to-generate", "6", "--json")
    answers = [
        run("generate", "--base", tiny_base, "--adapter", path, *prompts).out for path in (ia3, tmp_path / "back.nemo")
    ]
    assert answers[0] == answers[1]


def test_a_base_with_the_adapter_in_it_is_converted_like_any_other(
    run: Run, tiny_base: Path, ia3: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written = run("export", ia3, "--base", tiny_base, "--to", "hf", "--dtype", "float32", "--output", out)
    assert (written.status, written.err) == (0, "")
    assert "LlamaForCausalLM with ia3 in 6 linear layers" in written.out
    convert(out, tmp_path / "with.nemo")
    prompts = ("--prompt", "Anna lives near", "--tokens-to-generate", "6", "--json")
    answers = [
        run("generate", *model, *prompts).out
        for model in (("--base", tiny_base, "--adapter", ia3), ("--base", tmp_path / "with.nemo"))
    ]
    assert answers[0] == answers[1]


def test_what_exists_is_not_replaced(run: Run, tiny_base: Path, ia3: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    before = hashlib.sha256(ia3.read_bytes()).hexdigest()
    message = run("export", ia3, "--base", tiny_base, "--to", "peft", "--output", tmp_path / "there").refused()
    assert "exists already; nothing was changed" in message
    assert "exists already" in run("import", tmp_path, "--base", tiny_base, "--output", ia3).refused()
    assert list((tmp_path / "there").iterdir()) == []
    assert hashlib.sha256(ia3.read_bytes()).hexdigest() == before


def test_mistakes_are_told_without_a_traceback(run: Run, tiny_base: Path, ia3: Path, tmp_path: Path) -> None:
    peft = ("--to", "peft", "--output", tmp_path / "peft")
    assert "invalid choice: 'onnx'" in run("export", ia3, "--base", tiny_base, "--to", "onnx").refused()
    dtype = ("--dtype", "float16")
    assert "--dtype: has no effect with --to peft" in run("export", ia3, "--base", tiny_base, *peft, *dtype).refused()
    hub = run("export", ia3, "--base", tiny_base, "--to", "adapterhub", "--output", tmp_path, "--results", tmp_path)
    for words in ("exists already", "--results: has no effect with --to adapterhub, which has no model card"):
        assert words in hub.refused()
    assert "does not exist" in run("export", ia3, "--base", tiny_base, *peft, "--results", tmp_path / "x").refused()
    assert "is a base model, not an adapter" in run("export", tiny_base, "--base", tiny_base, *peft).refused()
    assert "is an adapter, not a base model" in run("export", ia3, "--base", ia3, *peft).refused()
    assert "no such folder" in run("import", tmp_path / "x", "--base", tiny_base, "--output", "a.nemo").refused()
    assert "does not end in .nemo" in run("import", tmp_path, "--base", tiny_base, "--output", "a.bin").refused()


def test_merge_says_what_the_result_is(run: Run, tiny_base: Path, ia3: Path, tmp_path: Path) -> None:
    lora = forms.make_adapter(tmp_path / "lora.nemo", tiny_base, "lora")
    averaged = run("merge", ia3, ia3, "--weights", "0.7", "0.3", "--output", tmp_path / "one.nemo")
    assert "ia3, the average of weights of 2 adapters (its effect is not the average of theirs)" in averaged.out
    added = run("merge", lora, lora, lora, "--output", tmp_path / "two.nemo")
    assert "lora, the sum of updates of 3 adapters (exact)" in added.out
    message = run("merge", ia3, lora, "--weights", "1", "nan", "2", "--output", ia3).refused()
    for words in ("exists already", "has 3 numbers for 2 adapters", "not finite"):
        assert words in message
    assert "only one is given" in run("merge", ia3, "--output", tmp_path / "x.nemo").refused()
