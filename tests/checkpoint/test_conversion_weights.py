# SPDX-License-Identifier: Apache-2.0
"""Conversions use every tensor and fill every weight, or write nothing; results compute what sources compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.checkpoint.sources import check_source
from nemo_launcher.conversion import convert as conversion
from nemo_launcher.conversion.convert import convert
from nemo_launcher.conversion.source import open_source
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.family import GPT
from nemo_launcher.families.gpt.hf_decoder import DECODERS, Decoder
from tests.checkpoint.conversions import Weights, assert_refused, changed, stored_weights
from tests.engine import save_llama
from tests.shared import shared_path
from tests.t5 import save_t5
from tests.versions import needs_transformers

pytestmark = pytest.mark.unit

LLAMA = DECODERS["llama"]


# --- which weights --------------------------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": weight for name, weight in weights.items()}


def with_head(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


SAME: dict[str, Callable[[Weights], Weights]] = {
    "module": prefixed("module."),
    "peft": prefixed("base_model.model."),
    "twice": prefixed("model."),
    "without_prefix": lambda weights: {name.removeprefix("model."): weight for name, weight in weights.items()},
    "head_stored_as_well": with_head,
    "head_alone": lambda weights: {
        name.replace("model.embed_tokens", "lm_head"): weight for name, weight in weights.items()
    },
    "rotary_tables": lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_other_names_of_the_same_weights_give_the_same_base(
    change: Callable[[Weights], Weights], tied: Path, tmp_path: Path
) -> None:
    convert(changed(tied, tmp_path / "hf", change), tmp_path / "base.nemo")
    found, wanted = stored_weights(tmp_path / "base.nemo"), stored_weights(tied.parent / "base.nemo")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


def holding(number: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][2, 3] = number
        return weights

    return change


WRONG: dict[str, tuple[Callable[[Weights], Weights], dict[str, Any], list[str]]] = {
    "absent": (
        without("model.layers.1.mlp.up_proj.weight"),
        {},
        ["1 of 21 weights", "model.layers.1.mlp.up_proj.weight"],
    ),
    "superfluous": (
        lambda weights: weights | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)},
        {},
        ["1 tensors do not belong to", "q_norm.weight"],
    ),
    "many": (
        lambda weights: {"model.embed_tokens.weight": weights["model.embed_tokens.weight"]},
        {},
        ["19 of 21 weights", "and 9 more (19 in all)"],
    ),
    "other_shape": (
        lambda weights: weights | {"model.norm.weight": torch.ones(15)},
        {},
        ["1 weights have different shapes", "(15,)", "(16,)"],
    ),
    "no_head": (lambda weights: weights, {"tie_word_embeddings": False}, ["missing", "lm_head.weight"]),
    "head_of_its_own": (
        lambda weights: weights | {"lm_head.weight": torch.ones_like(weights["model.embed_tokens.weight"])},
        {},
        ["lm_head.weight", "differs", "tie_word_embeddings"],
    ),
    "nan": (holding(float("nan")), {}, ["up_proj.weight", "1 of 256 numbers are not finite"]),
    "infinity": (holding(float("inf")), {}, ["up_proj.weight", "not finite"]),
}


@pytest.mark.parametrize(("change", "config", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(
    change: Callable[[Weights], Weights], config: dict[str, Any], words: list[str], tied: Path, tmp_path: Path
) -> None:
    folder = changed(tied, tmp_path / "hf", change, **config)
    assert_refused(folder, tmp_path / "base.nemo", words)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("hf_missing_weights", ["1 of 21 weights", "missing: model.layers.1.mlp.up_proj.weight"]),
        ("hf_unexpected_weights", ["2 tensors do not belong to", "q_norm.weight", "q_proj.bias"]),
    ],
)
def test_cases_that_are_refused(case: str, words: list[str], tmp_path: Path) -> None:
    assert_refused(shared_path(f"cases/{case}"), tmp_path / "base.nemo", words)


def test_numbers_beyond_the_stored_type_are_refused(tied: Path, tmp_path: Path) -> None:
    folder = changed(tied, tmp_path / "hf", holding(1e6))
    with pytest.raises(UserError, match=r"model.precision: .*_fc1.weight has values beyond the range of torch.float16"):
        convert(folder, tmp_path / "base.nemo", 16)


def test_pytorch_model_bin_is_read_without_running_it(tied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tied, tmp_path / "hf")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert(folder, tmp_path / "base.nemo")
    found, wanted = stored_weights(tmp_path / "base.nemo"), stored_weights(tied.parent / "base.nemo")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_code_in_pytorch_model_bin_is_refused(tied: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    folder = shutil.copytree(tied, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(2), "x": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        convert(folder, tmp_path / "base.nemo")
    assert not (tmp_path / "executed").exists()


@needs_transformers("5", "dequantizes FP8 on GPUs alone")
def test_fp8_in_blocks_gives_transformers_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "head_dim": 64}
    folder = save_llama(tmp_path / "hf", num_key_value_heads=2, num_hidden_layers=1, **sizes)
    stored: Weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = weight.bfloat16()
        if "proj" in name:
            blocks = weight.reshape(weight.size(0) // 128, 128, -1, 128)
            scales = blocks.abs().amax((1, 3)) / 448
            stored[name] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False).state_dict()
    ours = open_source(folder).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert convert(folder, tmp_path / "base.nemo")


# --- what was written is compared -----------------------------------------------------------------------------------


def swapped_gates(weights: Any, config: Any) -> Iterator[tuple[str, Tensor]]:
    for name, weight in LLAMA.convert_weights(weights, config):
        is_second = name == "decoder.layers.1.mlp.linear_fc1.weight"
        yield name, weight.roll(weight.size(0) // 2, 0) if is_second else weight


def other_settings(**changes: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda config, weights: LLAMA.nemo_config(config, weights) | changes


@pytest.mark.parametrize(
    ("name", "replacement", "words"),
    [
        ("convert_weights", swapped_gates, "layer 2 of 2: differs from the source"),
        ("nemo_config", other_settings(rotary_base=5000.0), "layer 1 of 2: differs from the source"),
        ("nemo_config", other_settings(seq_len_interpolation_factor=2.0), "layer 1 of 2: differs from the source"),
        ("nemo_config", other_settings(layernorm_epsilon=1e-2), "layer 1 of 2: differs from the source"),
        ("nemo_config", other_settings(activation="fast-geglu"), "layer 1 of 2: differs from the source"),
    ],
)
def test_a_base_that_computes_something_else_gets_no_name(
    name: str, replacement: Any, words: str, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type("Other", (Decoder,), {name: staticmethod(replacement)})
    monkeypatch.setitem(GPT.hugging_face, "llama", other(LLAMA.architecture))
    with pytest.raises(UserError, match=words):
        convert(tied, tmp_path / "base.nemo")
    assert not list(tmp_path.iterdir())


def test_what_was_compared_is_recorded(tied: Path) -> None:
    stamp = read_config(tied.parent / "base.nemo")["converted_from"]
    assert stamp["verified"] == conversion.VERIFIED
    assert stamp["converter"] == conversion.VERSION


def test_whole_numbers_in_a_pickle_are_no_weights(tied: Path, tmp_path: Path) -> None:
    """Such files hold quantized weights, whose scales are stored elsewhere."""
    shutil.copytree(tied, tmp_path / "hf")
    weights = {name: (weight * 100).to(torch.int8) for name, weight in load_file(tied / "model.safetensors").items()}
    torch.save(weights, tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    with pytest.raises(UserError, match="unsupported type int8"):
        convert(tmp_path / "hf", tmp_path / "base.nemo")
    assert not (tmp_path / "base.nemo").exists()


@pytest.mark.parametrize("changes", [{"feed_forward_proj": "relu"}, {"dense_act_fn": "silu"}])
def test_settings_of_t5_that_contradict_each_other_are_named(changes: dict[str, str], tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=r"config\.json: not supported yet: .* beside feed_forward_proj"):
        check_source(folder)


def test_how_transformers_is_to_run_a_model_does_not_matter(tied: Path, tmp_path: Path) -> None:
    settings = {"_attn_implementation": "flash_attention_2", "return_dict": False, "output_attentions": True}
    convert(changed(tied, tmp_path / "hf", lambda weights: weights, **settings), tmp_path / "base.nemo")
    wanted = stored_weights(tied.parent / "base.nemo")
    torch.testing.assert_close(stored_weights(tmp_path / "base.nemo"), wanted, rtol=0, atol=0)
