# SPDX-License-Identifier: Apache-2.0
"""A base of every decoder architecture gives transformers' logits, greedy tokens and gradients of IA3.

`python benchmarks/families.py --json FILE` runs these checks for all configurations, here one of each architecture.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.checkpoint.architectures.multimodal import MULTI_MODAL
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES, KINDS
from nemo_launcher.checkpoint.hf_folder import read_folder
from nemo_launcher.errors import UserError
from tests.conformance.families.checks import Both, check, exceeded, logits
from tests.conformance.families.models import FAMILIES, ONE_OF_EACH, kind_of, save

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_base_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    assert exceeded(check(tmp_path, FAMILIES[name])) == []


def test_a_tied_head_keeps_its_bias(tmp_path: Path) -> None:
    both = Both(tmp_path, FAMILIES["phi-tied"])
    assert both.theirs.lm_head.bias.count_nonzero() > 0
    figures = logits(both)
    assert figures["logits"] <= 1e-5 * figures["largest_logit"]


def test_every_decoder_has_four_configurations() -> None:
    kinds = [kind_of(tiny) for tiny in FAMILIES.values()]
    declared = {kind for kind, architecture in KINDS.items() if architecture.settings is not None}
    declared |= {one.kind for one in MULTI_MODAL.values()}
    assert {kind: kinds.count(kind) >= 4 for kind in declared} == dict.fromkeys(declared, True)
    assert {kind_of(FAMILIES[name]) for name in ONE_OF_EACH} == declared


def test_the_table_of_models_has_every_architecture() -> None:
    text = (Path(__file__).parents[3] / "docs/models.md").read_text(encoding="utf-8")
    assert [name for name in (*ARCHITECTURES, *MULTI_MODAL) if f"`{name}`" not in text] == []


def test_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, FAMILIES["qwen3-plain"])
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{\n  "attention_sinks": 4, "_name": "x", "unused": null,', 1))
    with pytest.raises(UserError, match=r"1 keys are unknown for Qwen3ForCausalLM.*: attention_sinks") as error:
        read_folder(tmp_path)
    assert "_name" not in str(error.value)
