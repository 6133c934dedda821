# SPDX-License-Identifier: Apache-2.0
"""NeMo 2 configurations that are refused: other models, options and tokenizers, each by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.nemo2_config import ModelSettings
from nemo_launcher.checkpoint.nemo2_fields import FIXED, FUNCTIONS, SCALING
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.checkpoint.pieces import refused
from tests.nemo2 import GPT_FIELDS, LLAMA, MODELS, core_fields, edit_yaml, function

pytestmark = pytest.mark.unit


def problems_of(fields: dict[str, Any], kind: str = LLAMA) -> list[str]:
    whole = {"_target_": kind, **core_fields(), **GPT_FIELDS, "num_layers": 2} | fields
    settings = ModelSettings(whole, "")
    settings.read()
    return [str(problem.where) for problem in settings.problems]


def test_every_field_of_megatron_core_is_known() -> None:
    assert problems_of({}) == []
    assert problems_of({"mtp_enabled": True, "init_method": function("any.name"), "cpu_offloading": True}) == []


def test_an_absent_field_is_named(folder: Path) -> None:
    edit_yaml(folder, lambda model: [model["config"].pop(name) for name in ("rotary_base", "add_bias_linear")])
    found = refused(folder)
    assert "config.rotary_base: is absent" in found
    assert "config.add_bias_linear: is absent" in found
    assert sorted(problems_of({}, f"{MODELS}llama.Llama31Config8B")) == sorted(SCALING)


@pytest.mark.parametrize("name", [*FIXED, *FUNCTIONS])
def test_a_field_that_changes_the_results_is_named(name: str) -> None:
    assert problems_of({name: "other"}) == [name]
    assert problems_of({name: function("os.system")}) == [name]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"normalization": "L2Norm"}, ["normalization"]),
        ({"activation_func": function("nemo.collections.llm.fn.activation.quick_gelu")}, ["activation_func"]),
        ({"activation_func": "torch.nn.functional.silu"}, ["activation_func"]),
        (
            {"activation_func": function("megatron.core.activations.squared_relu"), "gated_linear_unit": True},
            ["activation_func"],
        ),
        ({"window_size": [4, 4]}, ["window_size"]),
        ({"window_size": 4}, ["window_size"]),
        ({"an_option_of_tomorrow": True}, ["an_option_of_tomorrow"]),
        ({"an_option_of_tomorrow": 0.5, "num_moe_experts": 8}, ["num_moe_experts", "an_option_of_tomorrow"]),
        ({"an_option_of_tomorrow": False, "another": None}, []),
        ({"scale_factor": 8}, ["scale_factor"]),
    ],
)
def test_values_that_are_not_computed_are_named(fields: dict[str, Any], names: list[str]) -> None:
    assert problems_of(fields) == names


@pytest.mark.parametrize(
    "kind",
    [
        f"{MODELS}gemma2.Gemma2Config2B",
        f"{MODELS}llama.Llama4Config",
        f"{MODELS}qwen3.Qwen3MoEConfig",
        f"{MODELS}llama.LlamaConfigOfMine",
        "my.module.LlamaConfig",
        "os.system",
        "",
        None,
        [1],
    ],
)
def test_other_classes_are_refused_with_a_way_out(kind: Any, folder: Path) -> None:
    edit_yaml(folder, lambda model: model["config"].update(_target_=kind))
    found = refused(folder)
    assert "context/model.yaml: config._target_: " in found
    assert "llm.export_ckpt" in found


@pytest.mark.parametrize("value", ["many", 1.5, -1, True, [1], {"_target_": "os.system"}, 10**30])
def test_sizes_of_another_type_are_refused(value: Any, folder: Path) -> None:
    (folder / "context/io.json").unlink()
    edit_yaml(folder, lambda model: model["config"].update(hidden_size=value))
    assert "hidden_size" in refused(folder)


def test_values_that_differ_between_the_two_files_are_named(folder: Path) -> None:
    edit_yaml(folder, lambda model: model["config"].update(rotary_base=500000, _target_=f"{MODELS}base.GPTConfig"))
    found = refused(folder)
    assert "config.rotary_base: is not the value in context/io.json" in found
    assert "config._target_: is not the value in context/io.json" in found


# --- the tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"_target_": "nemo.collections.common.tokenizers.tiktoken_tokenizer.TiktokenTokenizer"}, "is not supported"),
        ({"additional_special_tokens": ["<a>"]}, "tokenizer.additional_special_tokens: adds special tokens"),
        ({"eos_token": "<|eot|>"}, "tokenizer.eos_token: adds special tokens"),
        ({"vocab_file": "../../etc/passwd", "pretrained_model_name": "../.."}, ""),
    ],
)
def test_other_tokenizers_are_named(section: dict[str, Any], what: str, folder: Path) -> None:
    edit_yaml(folder, lambda model: model["tokenizer"].update(section))
    if what:
        assert what in refused(folder)
    else:  # a name outside the folder is not followed: the folder's own files count
        with Archive(folder) as archive:
            assert archive.config()["tokenizer"]["type"] == "nemo:context/nemo_tokenizer"


def test_a_tokenizer_that_is_only_named_is_refused(folder: Path) -> None:
    for file in (folder / "context/nemo_tokenizer").iterdir():
        file.unlink()
    edit_yaml(folder, lambda model: model["tokenizer"].update(pretrained_model_name="meta-llama/Llama-3.1-8B"))
    with pytest.raises(UserError, match=r"carries no tokenizer .*") as error:
        load_base(folder)
    assert "in its folder context/nemo_tokenizer/" in str(error.value)


@pytest.mark.parametrize(
    ("section", "files", "expected"),
    [
        (
            {"_target_": "nemo.collections.common.tokenizers.sentencepiece_tokenizer.SentencePieceTokenizer"}
            | {"model_path": "./tokenizer.model", "legacy": False, "special_tokens": None},
            ["tokenizer.model"],
            {"library": "sentencepiece", "model": "nemo:context/tokenizer.model"},
        ),
        (
            {"pretrained_model_name": {"_target_": "any.Attr", "attr": "gpt2"}, "vocab_file": "v", "merges_file": "m"},
            ["v", "m"],
            {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:context/v"}
            | {"merge_file": "nemo:context/m"},
        ),
    ],
)
def test_other_files_of_tokenizers_are_found(
    section: dict[str, Any], files: list[str], expected: dict[str, str], folder: Path
) -> None:
    for name in files:
        (folder / "context" / name).write_bytes(b"content")
    edit_yaml(folder, lambda model: model["tokenizer"].update(section))
    with Archive(folder) as archive:
        assert archive.config()["tokenizer"] == expected
