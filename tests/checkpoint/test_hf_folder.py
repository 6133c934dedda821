# SPDX-License-Identifier: Apache-2.0
"""Checks of a Hugging Face folder by its configuration and the headers of its weights, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.checkpoint.hf_architectures import config_problems
from nemo_launcher.checkpoint.hf_folder import read_folder
from nemo_launcher.checkpoint.sources import check_source, source_problem
from nemo_launcher.errors import UserError
from tests.hugging_face import CONFIG, write_folder, write_safetensors

pytestmark = pytest.mark.unit

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
NORM = ("F32", (8,), bytes(32))


def configured(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | changes))


def written(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def removed(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def stored(**tensors: Any) -> Callable[[Path], object]:
    return lambda folder: write_safetensors(folder / "model.safetensors", tensors)


def sharded(parts: dict[str, list[str]], index: dict[str, str]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for part, names in parts.items():
            write_safetensors(folder / part, dict.fromkeys(names, NORM))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    return change


def device(name: str) -> Callable[[Path], object]:
    """Use a device instead of a pipe: opening a pipe would block, so that the test could not fail."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return change


ONE, TWO, THREE = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2, 3))

WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "config_cut_off": (cut("config.json", 40), ["config.json", "not JSON"]),
    "config_empty": (written("config.json", ""), ["config.json", "is empty"]),
    "config_pointer": (written("config.json", POINTER), ["config.json", "Git LFS pointer", "git lfs pull"]),
    "config_list": (written("config.json", "[1]"), ["config.json", "not an object"]),
    "config_number": (written("config.json", "1"), ["config.json", "not an object"]),
    "no_architecture": (configured(architectures=None), ["names no architecture", '"LlamaForCausalLM"']),
    "architecture_of_odd_type": (configured(architectures=[3]), ["names no architecture"]),
    "other_architecture": (configured(architectures=["MptForCausalLM"]), ["MptForCausalLM is not supported"]),
    "code_of_its_own": (
        configured(architectures=["MyModel"], auto_map={"AutoModel": "my.Model"}),
        ["MyModel is not supported", "auto_map", "not run"],
    ),
    "other_model_type": (configured(model_type="gemma"), ["model_type", "'gemma'"]),
    "text_as_size": (configured(hidden_size="8"), ["hidden_size", "not a whole number"]),
    "flag_as_size": (configured(num_hidden_layers=True), ["num_hidden_layers", "not a whole number"]),
    "countless_layers": (configured(num_hidden_layers=10**9), ["num_hidden_layers"]),
    "heads_that_do_not_divide": (configured(num_attention_heads=3), ["hidden_size", "is not a multiple of"]),
    "countless_labels": (configured(num_labels=10**9), ["num_labels", "not a valid number of labels"]),
    "eps_as_text": (configured(rms_norm_eps="small"), ["rms_norm_eps", "not a number"]),
    "rope_type": (
        configured(rope_scaling={"type": "yarn", "factor": 4.0}),
        ["not supported yet", "yarn without original_max"],
    ),
    "activation": (configured(hidden_act="gelu"), ["not supported yet", "hidden_act 'gelu'"]),
    "dtype_of_odd_type": (configured(dtype="float8"), ["dtype", "'float8'"]),
    "bnb": (
        configured(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ["bitsandbytes (4"],
    ),
    "gptq": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), ["quantized by gptq"]),
    "awq": (configured(quantization_config={"quant_method": "awq"}), ["quantized by awq"]),
    "compressed": (configured(quantization_config={"quant_method": "compressed-tensors"}), ["compressed-tensors"]),
    "mxfp4": (configured(quantization_config={"quant_method": "mxfp4"}), ["quantized by mxfp4"]),
    "fp8_without_blocks": (configured(quantization_config={"quant_method": "fp8"}), ["quantized by fp8"]),
    "numbers_that_are_no_weights": (stored(a=("I8", (4,), bytes(4))), ["1 tensors hold I8: a"]),
    "fp8_without_scales": (stored(a=("F8_E4M3", (4,), bytes(4))), ["F8_E4M3"]),
    "weights_cut_off": (cut("model.safetensors", 80), ["model.safetensors", "truncated"]),
    "weights_empty": (written("model.safetensors", ""), ["model.safetensors", "is empty"]),
    "weights_pointer": (written("model.safetensors", POINTER), ["model.safetensors", "Git LFS pointer"]),
    "weights_of_noise": (written("model.safetensors", b"\xff" * 64), ["model.safetensors", "not a safetensors file"]),
    "weights_with_a_tail": (
        lambda folder: (folder / "model.safetensors").open("ab").write(b"x"),
        ["1 bytes after its last tensor"],
    ),
    "shape_of_other_size": (stored(a=("F32", (9,), bytes(32))), ["32 bytes", "takes 36"]),
    "no_weights": (removed("model.safetensors"), ["holds no weights", "model.safetensors"]),
    "distributed": (
        lambda folder: (folder / "model.safetensors").rename(folder / "__0_0.distcp"),
        ["a distributed checkpoint", "save_pretrained"],
    ),
    "peft_adapter": (
        lambda folder: [
            (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
            (folder / "adapter_config.json").write_text("{}"),
        ],
        ["a PEFT adapter", "merge"],
    ),
    "old_pickle": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x02."),
        ],
        ["pytorch_model.bin", "before 1.6", "save_pretrained"],
    ),
    "part_absent": (sharded({ONE: ["a"]}, {"a": ONE, "b": TWO}), ["1 of 2 files", TWO]),
    "part_too_many": (sharded({ONE: ["a"], TWO: ["b"], THREE: ["c"]}, {"a": ONE, "b": TWO}), ["does not list", THREE]),
    "tensor_twice": (sharded({ONE: ["a"], TWO: ["a", "b"]}, {"a": ONE, "b": TWO}), ["are in several parts: a"]),
    "index_that_lies": (sharded({ONE: ["a"], TWO: ["b"]}, {"a": TWO, "b": ONE}), ["2 tensors are not in the part"]),
    "tensor_not_in_index": (sharded({ONE: ["a", "c"], TWO: ["b"]}, {"a": ONE, "b": TWO}), ["not in the index: c"]),
    "index_out_of_the_folder": (sharded({ONE: ["a"]}, {"a": "../" + ONE}), ["are absent", "../"]),
    "index_of_odd_form": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        ["weight_map", "not a mapping"],
    ),
    "no_index": (
        lambda folder: (folder / "model.safetensors").rename(folder / ONE),
        ["1 parts of the weights", "download model.safetensors.index.json"],
    ),
    "no_tokenizer": (removed("tokenizer.json"), ["holds no tokenizer", "tokenizer.json"]),
    "tokenizer_pointer": (written("tokenizer.json", POINTER), ["tokenizer.json", "Git LFS pointer"]),
    "tokenizer_with_a_mark": (
        written("tokenizer.json", b"\xef\xbb\xbf{}"),
        ["tokenizer.json", "byte order mark", "sed"],
    ),
    **{
        f"device_as_{name}": (device(name), [name, "is a device or pipe"])
        for name in ("model.safetensors", "model.safetensors.index.json", "tokenizer.json", "merges.txt", "config.json")
    },
    "folder_as_tokenizer": (
        lambda folder: [(folder / "tokenizer.json").unlink(), (folder / "tokenizer.json").mkdir()],
        ["tokenizer.json", "is a folder"],
    ),
    "link_that_leads_nowhere": (
        lambda folder: [(folder / "tokenizer.json").unlink(), (folder / "tokenizer.json").symlink_to("absent")],
        ["tokenizer.json", "no such file"],
    ),
    "tokenizer_config_list": (written("tokenizer_config.json", "[]"), ["tokenizer_config.json", "not an object"]),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_named(change: Callable[[Path], object], words: list[str], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    change(folder)
    with pytest.raises(UserError) as error:
        check_source(folder)
    assert all(word in str(error.value) for word in [str(folder), *words])


def test_distances_that_t5_cannot_tell_apart_are_named() -> None:
    sizes = dict.fromkeys(("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size"), 4)
    config = {"architectures": ["T5ForConditionalGeneration"], "relative_attention_num_buckets": 32, **sizes}
    assert not config_problems(config | {"relative_attention_max_distance": 17}, "config.json")
    (problem,) = config_problems(config | {"relative_attention_max_distance": 16}, "config.json")
    assert problem.where == "config.json: relative_attention_max_distance"


def test_norms_of_more_heads_than_a_model_has_are_refused() -> None:
    """transformers makes a module of each, so that its model would take hours."""
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"), 1 << 12)
    config = {"architectures": ["StableLmForCausalLM"], "qk_layernorm": True, "num_key_value_heads": 1, **sizes}
    assert not config_problems(config | {"num_hidden_layers": 15}, "config.json")
    (problem,) = config_problems(config | {"num_hidden_layers": 16}, "config.json")
    assert "qk_layernorm with 65,552 norms of heads" in problem.what


def test_more_experts_than_a_model_has_are_refused() -> None:
    """Each has tensors of its own, whose names would fill the memory."""
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers")
    config = {"architectures": ["MixtralForCausalLM"], **dict.fromkeys((*keys, "vocab_size"), 4)}
    assert not config_problems(config | {"num_local_experts": 1024}, "config.json")
    (problem,) = config_problems(config | {"num_local_experts": 1025}, "config.json")
    assert problem.what == "1,025 experts exceed the limit of 1,024"


def test_a_problem_is_told_once(tmp_path: Path) -> None:
    """tokenizer_config.json is read as settings and as a file of the tokenizer."""
    folder = write_folder(tmp_path / "hf")
    written("tokenizer_config.json", "")(folder)
    with pytest.raises(UserError) as error:
        read_folder(folder)
    assert [problem.what for problem in error.value.problems] == ["is empty"]


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", hidden_size="x", num_hidden_layers=-1)
    removed("tokenizer.json", "model.safetensors")(folder)
    with pytest.raises(UserError) as error:
        read_folder(folder)
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(
    "change",
    [
        written("config.json", b"\xef\xbb\xbf" + json.dumps(CONFIG).encode()),
        sharded({ONE: ["a"], TWO: ["b"]}, {"a": ONE, "b": TWO}),
        written("consolidated.safetensors", b"not read"),
        written(".gitattributes", ""),
        configured(torch_dtype="torch.bfloat16"),
        configured(head_dim=6, num_attention_heads=3, num_key_value_heads=3),
    ],
)
def test_supported_folders_are_read(change: Callable[[Path], object], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    change(folder)
    assert read_folder(folder).config["architectures"] == ["LlamaForCausalLM"]


def test_links_are_followed(tmp_path: Path) -> None:
    """Hugging Face's cache consists of links."""
    folder = write_folder(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert read_folder(tmp_path / "snapshot").tensors.keys() == {"model.norm.weight"}


def test_the_launcher_reads_without_torch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    code = (
        "import sys; from pathlib import Path; from nemo_launcher.checkpoint.sources import check_source\n"
        f"check_source(Path({str(folder)!r}))\n"
        "assert not {'torch', 'numpy', 'transformers', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_of_a_model_given_as_base_leads_to_its_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "My Model", architectures=["T5ForConditionalGeneration"], model_type="t5")
    problem = source_problem(folder / "model.safetensors")
    assert problem is not None
    assert "conversion_hf2nemo=hf_t5" in problem.fix
    assert "model_train_name=my_model" in problem.fix
    lonely = write_safetensors(tmp_path / "x.safetensors", {"a": NORM})
    assert "is a safetensors file" in str(source_problem(lonely))
    assert source_problem(tmp_path / "base.nemo") is None
