# SPDX-License-Identifier: Apache-2.0
"""Every option of a GPT's model_config.yaml has its documented effect, in NeMo's legacy and mcore layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.families.gpt.shape import GPTShape
from tests import gpt, t5
from tests.checkpoint.test_base import rewritten
from tests.engine import logits_of
from tests.shared import shared_path

pytestmark = pytest.mark.unit

PLAIN: dict[str, Any] = {
    "normalization": "layernorm",
    "activation": "gelu",
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
}
ROPE = {"position_embedding_type": "rope"}
LLAMA3 = ROPE | {"scale_positional_embedding": True, "high_freq_factor": 4, "old_context_len": 30}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layernorm1p": {"normalization": "layernorm1p"},
    "zero_centered_gamma": {"layernorm_zero_centered_gamma": True},
    "rmsnorm": {"normalization": "rmsnorm", "bias": False},
    "layernorm_epsilon": {"layernorm_epsilon": 0.5},
    "multiquery": {"attention_type": "multiquery"},
    "num_query_groups": {"num_query_groups": 2},
    "kv_channels": {"kv_channels": 12},
    "kv_channels_grouped_rope": {"kv_channels": 12, "num_query_groups": 2, **ROPE},
    "bias_false": {"bias": False},
    "qkv_bias": {"bias": False, "qkv_bias": True},
    "untied": {"share_embeddings_and_output_weights": False},
    "rope": ROPE,
    "rotary_percentage": {"rotary_percentage": 0.5, **ROPE},
    "rotary_base": {"rotary_base": 123.5, **ROPE},
    "seq_len_interpolation_factor": {"seq_len_interpolation_factor": 3.0, **ROPE},
    "llama3_scaling": LLAMA3,
    "llama3_scaling_factors": LLAMA3 | {"scale_factor": 3, "low_freq_factor": 0.5, "kv_channels": 16},
    **{name: {"activation": name} for name in ("relu", "squared-relu")},
    **{
        f"{fast}{name}": {"activation": f"{fast}{name}"}
        for name in ("geglu", "reglu", "swiglu")
        for fast in ("", "fast-")
    },
}


@pytest.mark.parametrize("layout", ["legacy", "mcore"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_computes_what_it_says(name: str, layout: str, tmp_path: Path) -> None:
    config = gpt.CONFIG | PLAIN | OPTIONS[name] | {"mcore_gpt": layout == "mcore"}
    weights = gpt.random_weights(config)
    stored = weights
    if layout == "mcore":
        stored = gpt.in_mcore_layout(weights)
    elif config["activation"].startswith("fast-"):
        stored = gpt.joined_gates(weights)
    path = gpt.write_gpt(tmp_path / "base.nemo", config, {"model_weights.ckpt": stored})
    ids = torch.randint(0, 200, (40,), generator=torch.Generator().manual_seed(1))
    wanted = gpt.plain_logits(config, weights, ids)
    assert wanted.std() > 0.2
    torch.testing.assert_close(logits_of(path, ids[None])[0], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "plain"])
def test_the_reference_sees_the_option(name: str) -> None:
    """An option ignored by the plain model would prove nothing."""
    config = gpt.CONFIG | PLAIN | OPTIONS[name]
    before = gpt.CONFIG | PLAIN | (ROPE if config["position_embedding_type"] == "rope" and name != "rope" else {})
    ids = torch.arange(30)
    found = gpt.plain_logits(config, gpt.random_weights(config), ids)
    assert (found - gpt.plain_logits(before, gpt.random_weights(before), ids)).abs().max() > 1e-2


def shape_of(**changes: Any) -> GPTShape:
    return GPTShape.from_config(gpt.CONFIG | PLAIN | changes, vocab_size=8, source="base.nemo")


def test_a_window_of_attention_limits_the_sequence() -> None:
    assert shape_of(window_size=[16, 0]).encoder_seq_length == 16
    assert shape_of(window_size=[100, 0]).encoder_seq_length == 64
    assert shape_of(window_size=[-1, 0]).encoder_seq_length == 64
    assert shape_of(window_size=None).encoder_seq_length == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"longrope_short_factor": [1.0, 2.0]}, "longrope_short_factor: has 2 numbers, but"),
        ({"rotary_base_local": 0}, "rotary_base_local: 0 is not a number above 0"),
        ({"yarn_scaling_factor": "x"}, "yarn_scaling_factor: 'x' is not a number above 0"),
        ({"rotary_base": "much"}, "rotary_base: 'much' is not a number above 0"),
        ({"seq_len_interpolation_factor": -1}, "seq_len_interpolation_factor: -1 is not a number above 0"),
        (LLAMA3 | {"low_freq_factor": 5}, "low_freq_factor: 5 is not below high_freq_factor 4"),
        (LLAMA3 | {"old_context_len": "long"}, "old_context_len: 'long' is not a number above 0"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shape_of(**changes)


def test_norms_about_zero_in_t5(tmp_path: Path) -> None:
    source = shared_path("oracle/base_t5.nemo")

    def about_zero(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: w - 1 if name.endswith("layernorm.weight") else w for name, w in weights.items()}

    sections = read_config(source)
    changes = {"normalization": "layernorm1p"}
    config = {stack: sections[stack] | changes for stack in ("encoder", "decoder")}
    path = rewritten(source, tmp_path / "a.nemo", weights=about_zero, config=config)
    samples = t5.random_samples(3)
    found, wanted = (t5.logits_of(load_base(base), samples) for base in (path, source))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
