# SPDX-License-Identifier: Apache-2.0
"""What a launch says about a model to be converted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hugging_face import write_folder

pytestmark = pytest.mark.unit

NAME = "conversion_hf2nemo: my-model is a Qwen2ForCausalLM"
MAIN = Path(__file__).parents[2] / "main.py"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], f"{NAME} of 1 layers, with 0 million weights, which are kept as float32"),
        (["conversion_hf2nemo.model.precision=bf16"], "with 0 million weights, stored as bf16"),
    ],
)
def test_a_launch_says_what_is_converted(options: list[str], told: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "my-model", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    command = [sys.executable, str(MAIN), "stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "debug=True"]
    command += [f"conversion_hf2nemo.model.hf_model_path={source}", "conversion_hf2nemo.run.model_train_name=mine"]
    command += [f"base_results_dir={tmp_path / 'results'}", "cluster_type=interactive", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}, check=False)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
