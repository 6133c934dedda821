# SPDX-License-Identifier: Apache-2.0
"""NeMo 2 folders as bases: the same model as a `.nemo` of the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.api.model import Model
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.conversion.convert import convert
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from tests import gpt
from tests.checkpoint.pieces import in_pieces, stacked, written
from tests.engine import logits_of, save_llama
from tests.nemo2 import LLAMA, MODELS, assert_same, fields_of, folder_of, save_distributed, tokenizer_of, write_nemo2

pytestmark = pytest.mark.unit

_GPT = gpt.CONFIG | {
    "activation": "gelu",
    "normalization": "layernorm",
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
}
_LLAMA = gpt.CONFIG | {
    "activation": "swiglu",
    "normalization": "rmsnorm",
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
    "bias": False,
    "num_query_groups": 2,
}
_WINDOW = {"window_size": [5, 0]}


def test_a_llama_equals_its_nemo(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_base, weights, tmp_path / "step=7-last")
    assert_same(folder, tiny_base)
    facts, told = inspect(folder), inspect(tiny_base)
    assert facts.pop("layout") == "NeMo 2, distributed checkpoint"
    assert facts["tokenizer_inside"]
    differing = {"file", "bytes", "layout", "tokenizer"}
    assert {key: facts[key] for key in facts.keys() - differing} == {key: told[key] for key in told.keys() - differing}


@pytest.mark.parametrize(
    ("config", "changes", "kind"),
    [
        (_GPT, {}, f"{MODELS}base.GPTConfig126M"),
        (_GPT | {"bias_activation_fusion": True}, {}, f"{MODELS}base.GPTConfig"),
        (_LLAMA, {}, f"{MODELS}llama.Llama2Config7B"),
        (_LLAMA | {"bias": False, "qkv_bias": True, "kv_channels": 16}, {}, f"{MODELS}qwen2.Qwen25Config1P5B"),
        (_LLAMA | _WINDOW | {"window_attn_skip_freq": [1, 1]}, {"window_attn_skip_freq": None}, ""),
        (_LLAMA | _WINDOW | {"window_attn_skip_freq": [1, 0]}, {"window_attn_skip_freq": 2}, ""),
        (_LLAMA, {"window_size": [-1, 0]}, f"{MODELS}mistral.MistralNeMoConfig12B"),
        (
            _GPT
            | {"activation": "squared-relu", "bias": False, "rotary_percentage": 0.5, "position_embedding_type": "rope"}
            | {"layernorm_zero_centered_gamma": True, "share_embeddings_and_output_weights": False},
            {},
            f"{MODELS}nemotron.Nemotron3Config4B",
        ),
    ],
)
def test_every_supported_setting_equals_that_of_a_nemo(
    config: dict[str, Any], changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    weights = gpt.in_mcore_layout(gpt.random_weights(config))
    base = gpt.write_gpt(tmp_path / "base.nemo", config | {"mcore_gpt": True}, {WEIGHTS_NAME: weights})
    ours = {name.removeprefix("model."): weight for name, weight in weights.items()}
    fields, files = fields_of(config) | changes, tokenizer_of(base)
    assert_same(write_nemo2(tmp_path / "folder", fields, ours, kind=kind or LLAMA, files=files), base)


def test_the_model_is_that_of_plain_torch(tmp_path: Path) -> None:
    weights = gpt.random_weights(_LLAMA)
    ours = {n.removeprefix("model."): weight for n, weight in gpt.in_mcore_layout(weights).items()}
    files = {name.removeprefix("tokenizer/"): content for name, content in gpt.tokenizer_files()[1].items()}
    folder = write_nemo2(tmp_path / "folder", fields_of(_LLAMA), ours, files=files)
    ids = torch.randint(3, 300, (20,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits_of(folder, ids[None])[0], gpt.plain_logits(_LLAMA, weights, ids))


def test_llama_3_scaling_belongs_to_the_class(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16, "rope_theta": 500000.0}
    source, base = save_llama(tmp_path / "hf", rope_parameters=rope), tmp_path / "base.nemo"
    convert(source, base)
    with Archive(base) as archive:
        weights = dict(read_tensors(archive, WEIGHTS_NAME))
    scaling = {"scale_factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 16}
    kind = f"{MODELS}llama.Llama31Config8B"
    assert_same(folder_of(base, weights, tmp_path / "scaled", kind=kind, **scaling), base)
    plain = folder_of(base, weights, tmp_path / "plain", kind=f"{MODELS}llama.Llama3Config8B")
    assert load_base(plain).fingerprint != load_base(base).fingerprint


def test_several_ranks_in_bf16(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_base, {}, tmp_path / "folder", bf16=True)
    halves = {f"module.{name.removeprefix('model.')}": weight.bfloat16() for name, weight in weights.items()}
    whole = stacked({f"model.{name.removeprefix('module.')}": weight for name, weight in halves.items()})
    pieces = {name.replace("model.", "module.", 1): parts for name, parts in in_pieces(whole, 2).items()}
    (folder / "weights").mkdir(exist_ok=True)
    for name, content in written(pieces).items():
        (folder / name.replace("model_weights/", "weights/")).write_bytes(content)
    assert_same(folder, tiny_base, torch.bfloat16)
    assert inspect(folder)["precision"] == "bf16"


def test_the_optimizer_is_neither_read_nor_counted(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_base, weights, tmp_path / "folder")
    outline = read_outline(folder)
    whole = stacked(weights)
    tensors = {f"module.{name.removeprefix('model.')}": weight for name, weight in whole.items()}
    for state in ("exp_avg", "exp_avg_sq", "fp32_param"):
        tensors |= {f"optimizer.state.{state}.{n}": t.double() for n, t in list(tensors.items()) if n[0] == "m"}
    tensors |= {"chained_0.optimizer.distributed.dp_group_idx_0.param_state": torch.zeros(5)}
    for file in (folder / "weights").iterdir():
        file.unlink()
    save_distributed(folder / "weights", tensors)
    assert_same(folder, tiny_base)
    trained = read_outline(folder)
    assert outline is not None
    assert trained is not None
    assert trained.weight_bytes == outline.weight_bytes
    assert sum(size for size in trained.sizes.values()) > 5 * trained.weight_bytes


def test_io_json_may_be_absent(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_base, weights, tmp_path / "folder")
    (folder / "context/io.json").unlink()
    assert_same(folder, tiny_base)


def test_a_folder_answers_prompts(weights: dict[str, Tensor], tiny_base: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_base, weights, tmp_path / "folder")
    ours, theirs = (Model.load(path).generate(["Anna lives"], tokens_to_generate=4) for path in (folder, tiny_base))
    assert [answer.text for answer in ours] == [answer.text for answer in theirs]
