# SPDX-License-Identifier: Apache-2.0
"""What a launch says about a model to be converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hugging_face import CONFIG, write_folder, write_safetensors

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
    status, out, err = _launch(source, tmp_path, *options)
    assert status == 0, err
    assert told in out


def test_a_launch_names_the_key_of_a_language_model_and_says_what_is_left_out(tmp_path: Path) -> None:
    text = {key: value for key, value in CONFIG.items() if key not in ("architectures", "dtype")}
    whole = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    source = write_folder(tmp_path / "my-model", **whole, text_config=text | {"model_type": "mistral"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({key: config[key] for key in (*whole, "text_config", "dtype")}))
    names = ("language_model.model.norm.weight", "vision_tower.ln_pre.weight")
    write_safetensors(source / "model.safetensors", dict.fromkeys(names, ("F32", (1_000_000,), bytes(4_000_000))))
    status, _, err = _launch(source, tmp_path)
    assert status == 2
    option = "conversion_hf2nemo.model.hf_language_model=True"
    assert "Mistral3ForConditionalGeneration also sees images" in err
    assert f"add {option}" in err
    status, out, err = _launch(source, tmp_path, option)
    assert status == 0, err
    part = "of which the language model is taken: a MistralForCausalLM of 1 layers, with 1 million weights"
    assert f"my-model is a Mistral3ForConditionalGeneration, {part}, which are kept as float32" in out
    assert "without 1 tensors of its other parts (1 million weights)" in out


def _launch(source: Path, folder: Path, *options: str) -> tuple[int, str, str]:
    """Dry-run a conversion; return the exit status and what was printed."""
    command = [sys.executable, str(MAIN), "stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "debug=True"]
    command += [f"conversion_hf2nemo.model.hf_model_path={source}", "conversion_hf2nemo.run.model_train_name=mine"]
    command += [f"base_results_dir={folder / 'results'}", "cluster_type=interactive", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"}, check=False)
    return done.returncode, done.stdout, done.stderr
