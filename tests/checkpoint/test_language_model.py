# SPDX-License-Identifier: Apache-2.0
"""The language model of a multi-modal folder: what is taken, what is refused, and what is said. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.checkpoint.architectures.multimodal import MULTI_MODAL
from nemo_launcher.checkpoint.hf_folder import read_folder
from nemo_launcher.checkpoint.language_model import OPTION
from nemo_launcher.checkpoint.sources import check_source, source_problem
from nemo_launcher.errors import UserError
from tests.gguf_files import write_gguf
from tests.hugging_face import CONFIG, write_folder, write_safetensors

pytestmark = pytest.mark.unit

TEXT: dict[str, Any] = {
    **{key: value for key, value in CONFIG.items() if key not in ("architectures", "dtype", "tie_word_embeddings")},
    "model_type": "mistral",
}
MISTRAL3: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": TEXT,
    "vision_config": {"model_type": "pixtral"},
    "image_token_index": 10,
    "dtype": "float32",
    "eos_token_id": [2, 3],
}
NORM, TOWER = "language_model.model.norm.weight", "vision_tower.ln_pre.weight"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def write(folder: Path, names: Iterable[str] = (NORM, TOWER), **changes: Any) -> Path:
    """Write a multi-modal folder with tensors of these names; `changes`: keys of its config.json."""
    write_folder(folder)
    config = {key: value for key, value in (MISTRAL3 | changes).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", dict.fromkeys(names, ("F32", (8,), bytes(32))))
    return folder


def problems_of(folder: Path, *, asked: bool = True) -> list[str]:
    """Return the problems of a folder, each as a line."""
    with pytest.raises(UserError) as error:
        check_source(folder, language_model=asked)
    return [f"{problem.where}: {problem.what}; {problem.fix}" for problem in error.value.problems]


def test_its_part_of_the_folder_is_read(tmp_path: Path) -> None:
    found = read_folder(write(tmp_path / "hf"), language_model=True)
    assert found.config == TEXT | {
        "architectures": ["MistralForCausalLM"],
        "dtype": "float32",
        "eos_token_id": [2, 3],
        "tie_word_embeddings": True,
    }
    assert (found.tensors.keys(), found.left_out.keys()) == ({"model.norm.weight"}, {TOWER})


def test_without_the_key_it_is_refused_and_the_key_is_accepted(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path / "hf"), asked=False)
    assert "Mistral3ForConditionalGeneration also sees images" in problem
    assert problem.endswith("add conversion_hf2nemo.model.hf_language_model=True")
    check_source(tmp_path / "hf", language_model=True)


def test_a_model_of_text_alone_is_refused_with_the_key(tmp_path: Path) -> None:
    for path in (write_folder(tmp_path / "hf"), write_gguf(tmp_path / "m.gguf")):
        (problem,) = problems_of(path)
        assert problem.startswith("model.hf_language_model: ")
        assert "is a language model already" in problem
        assert problem.endswith(f"remove {OPTION}")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "LlavaForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
        "MllamaForConditionalGeneration",
        "Gemma3Model",
    ],
)
def test_other_kinds_are_refused_by_name(name: str, asked: bool, tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path / "hf", architectures=[name]), asked=asked)
    assert f"architecture {name} is not supported" in problem
    assert f"the language models of {', '.join(MULTI_MODAL)}" in problem


def test_a_folder_given_as_a_base_is_to_be_converted_with_the_key(tmp_path: Path) -> None:
    problem = source_problem(write(tmp_path / "hf"))
    assert problem is not None
    assert f" {OPTION}" in str(problem.fix)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no_text_config": ({"text_config": "absent"}, "config.json: text_config: is absent"),
    "null": ({"text_config": None}, "text_config: is null, not a mapping"),
    "list": ({"text_config": [TEXT]}, "text_config: is a list, not a mapping"),
    "text": ({"text_config": "mistral"}, "text_config: is text, not a mapping"),
    "nested_twice": (
        {"text_config": {"model_type": "mistral", "text_config": TEXT}},
        "text_config: 1 keys are unknown for MistralForCausalLM and may change its results: text_config",
    ),
    "whole_in_it": ({"text_config": MISTRAL3}, "its model_type mistral3 is not supported; supported: mistral, mini"),
    "other_kind": ({"text_config": TEXT | {"model_type": "qwen2"}}, "its model_type qwen2 is not supported"),
    "kind_of_odd_type": ({"text_config": TEXT | {"model_type": ["mistral"]}}, "['mistral'] is not supported"),
    "wrong_model_type": ({"model_type": "gemma3"}, "gemma3 does not belong to architecture Mistral3For"),
    "unknown_key": ({"gate": 3}, "1 keys are unknown for Mistral3ForConditionalGeneration and may change"),
    "tied_of_odd_type": ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings: no is neither true nor"),
    "inner_tied_of_odd_type": (
        {"text_config": TEXT | {"tie_word_embeddings": 0}, "tie_word_embeddings": True},
        "text_config: tie_word_embeddings: 0 is neither true nor false",
    ),
    "size_of_odd_type": ({"text_config": TEXT | {"hidden_size": "8"}}, "text_config: hidden_size: '8' is not a whole"),
    "quantized": ({"quantization_config": {"quant_method": "fp8"}}, "the weights are quantized by fp8"),
    "dtype_of_odd_type": ({"dtype": "float8"}, "'float8' is not a supported dtype"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_odd_configurations_are_refused(case: str, tmp_path: Path) -> None:
    changes, told = CONFIGS[case]
    problems = problems_of(write(tmp_path / "hf", **changes))
    assert any(told in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([NORM, "model.language_model.embed_tokens.weight"], "names of two layouts: language_model.model.norm.weight"),
        ([NORM, EMBEDDING, "lm_head.weight"], "names of two layouts"),
        ([NORM, "model.norm.weight"], "1 tensors belong neither to its language model nor to its other parts: model.n"),
        ([NORM, TOWER, "audio_tower.weight"], "other parts: audio_tower.weight"),
        (["language_model.language_model.model.norm.weight"], "belong neither"),
        ([TOWER], "none of its 1 tensors belongs to the language model"),
    ],
)
def test_odd_names_are_refused(names: list[str], told: str, tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path / "hf", names))
    assert told in problem


def test_a_language_model_without_its_other_parts_is_taken(tmp_path: Path) -> None:
    assert not read_folder(write(tmp_path / "hf", [NORM]), language_model=True).left_out


@pytest.mark.parametrize("change", [lambda name: name, lambda name: f"{name}_of_another"])
def test_an_index_with_other_names_is_refused(change: Callable[[str], str], tmp_path: Path) -> None:
    folder, part = write(tmp_path / "hf"), "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    index = {"weight_map": {change(name): part for name in (NORM, TOWER)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if change(NORM) == NORM:
        check_source(folder, language_model=True)
    else:
        assert all("index" in problem for problem in problems_of(folder))


@pytest.mark.parametrize(
    ("outer", "inner", "has_head", "is_tied"),
    [
        (True, True, False, True),
        (True, False, False, True),  # transformers 5.23 writes this
        (True, False, True, False),  # and earlier versions this
        (False, True, True, False),
        (None, True, True, True),
        (None, False, True, False),
        (None, None, True, False),  # Mistral Small 3.1
        (None, None, False, True),
    ],
)
def test_a_tied_head(outer: bool | None, inner: bool | None, has_head: bool, is_tied: bool, tmp_path: Path) -> None:
    names = [NORM, EMBEDDING, *([HEAD] if has_head else [])]
    folder = write(tmp_path / "hf", names, tie_word_embeddings=outer, text_config=TEXT | {"tie_word_embeddings": inner})
    assert read_folder(folder, language_model=True).config["tie_word_embeddings"] is is_tied


def test_types_of_weights_are_those_of_the_whole_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", dtype="absent", torch_dtype="float32", text_config=TEXT | {"dtype": "bfloat16"})
    found = read_folder(folder, language_model=True).config
    assert (found.get("dtype"), found["torch_dtype"]) == (None, "float32")


def test_a_cap_of_logits_is_refused(tmp_path: Path) -> None:
    sizes = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    changes = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    folder = write(tmp_path / "hf", **changes, text_config=sizes | {"vocab_size": 16})
    check_source(folder, language_model=True)
    folder = write(tmp_path / "hf", **changes, text_config=sizes | {"final_logit_softcapping": 30.0})
    (problem,) = problems_of(folder)
    assert "final_logit_softcapping 30.0" in problem


def test_defaults_of_text_config_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for whole in MULTI_MODAL.values():
        if whole.defaults:
            config = getattr(transformers, whole.texts[0].name).config_class()
            assert {key: getattr(config, key) for key in whole.defaults} == whole.defaults


def test_every_problem_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", gate=3, text_config=TEXT | {"heads": 2})
    found = "\n".join(problems_of(folder, asked=False))
    assert re.search(r"add .*hf_language_model=True\n.*: gate; .*\n.*: heads; ", found)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes"])
def test_a_quantized_language_model_is_refused(method: str, tmp_path: Path) -> None:
    section = {"quantization_config": {"quant_method": method}}
    (outer,) = problems_of(write(tmp_path / "outer", **section))
    (inner,) = problems_of(write(tmp_path / "inner", text_config=TEXT | section))
    assert f"the weights are quantized by {method}" in outer
    assert outer.replace("outer", "inner") == inner
