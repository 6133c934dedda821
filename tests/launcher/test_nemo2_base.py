# SPDX-License-Identifier: Apache-2.0
"""A NeMo 2 folder as the base of a launch: its sizes are those of the `.nemo`, and its faults are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME
from nemo_launcher.launcher.base_sizes import base_of, stacks_of
from nemo_launcher.launcher.probe import LaunchProbe
from tests import gpt
from tests.nemo2 import fields_of, write_nemo2
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

_CONFIG = gpt.CONFIG | {
    "activation": "swiglu",
    "normalization": "rmsnorm",
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": True,
    "bias": False,
    "precision": 32,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = gpt.in_mcore_layout(gpt.random_weights(_CONFIG))
    gpt.write_gpt(tmp_path / "base.nemo", _CONFIG, {WEIGHTS_NAME: weights})
    ours = {name.removeprefix("model."): weight for name, weight in weights.items()}
    files = {name.removeprefix("tokenizer/"): content for name, content in gpt.tokenizer_files()[1].items()}
    return write_nemo2(tmp_path / "model--val_loss=0.50-step=7-last", fields_of(_CONFIG), ours, files=files)


def test_a_dry_run_accepts_it_and_names_what_is_wrong(folder: Path, launch: Launch, workplace: Workplace) -> None:
    chosen = f"adapter_learning.model.language_model_path='{folder}'"
    arguments = [*workplace.arguments, chosen, "adapter_learning.model.adapter_tuning.adapter_dim=8"]
    result = launch(*arguments, "debug=True")
    assert result.status == 0, result.err
    assert "parameters" in result.out
    path = folder / "context/model.yaml"
    model = yaml.safe_load(path.read_text())
    model["config"] |= {"num_moe_experts": 8, "qk_l2_norm": True}
    path.write_text(yaml.safe_dump(model))
    result = launch(*arguments, "debug=True")
    assert result.status == 2
    assert "language_model_path" in result.err
    assert "config.num_moe_experts: 8 is not supported" in result.err
    assert "config.qk_l2_norm: True is not supported" in result.err


def test_the_estimate_is_that_of_the_nemo(folder: Path) -> None:
    probe = LaunchProbe()
    found, wanted = (probe.outline(path) for path in (folder, folder.parent / "base.nemo"))
    assert found is not None
    assert wanted is not None
    assert stacks_of(found) == stacks_of(wanted)
    sizes = [base_of(outline, stacks_of(outline)) for outline in (found, wanted)]
    assert sizes[0].parameters.layers == sizes[1].parameters.layers
    assert sizes[0].parameters.rows == pytest.approx(sizes[1].parameters.rows, rel=0.6)
