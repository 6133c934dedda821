# SPDX-License-Identifier: Apache-2.0
"""A folder of NeMo 2 as the base of a training and its evaluation, launched through main.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.tensors import read_tensors
from tests.integration.launching import LAPTOP, launch, quoted, write_squad_source
from tests.nemo2 import folder_of

pytestmark = pytest.mark.integration


def test_its_jobs_do_what_those_of_a_nemo_do(tiny_base: Path, tmp_path: Path) -> None:
    with Archive(tiny_base) as archive:
        weights = {name: weight.clone() for name, weight in read_tensors(archive, WEIGHTS_NAME).items()}
    bases = {"folder": folder_of(tiny_base, weights, tmp_path / "nemo2/step=7-last"), "file": tiny_base}
    results = {}
    for name, base in bases.items():
        folder = tmp_path / name
        write_squad_source(folder / "data")
        done = launch(folder, *_arguments(base))
        assert done.returncode == 0, done.stdout + done.stderr
        job = folder / "results/tiny/ia3_learning_squad"
        (adapter,) = (job / "results").glob("*.nemo")
        predictions = folder / "results/tiny/ia3_learning_squad_eval/results/predictions.txt"
        results[name] = read_adapter(adapter), predictions.read_text()
    (config, state), predictions_of_folder = results["folder"]
    (_, wanted), predictions_of_file = results["file"]
    assert config["language_model_path"] == str(bases["folder"])
    assert state.keys() == wanted.keys()
    for key, tensors in wanted.items():
        torch.testing.assert_close(state[key], tensors, rtol=0, atol=0)
    assert predictions_of_folder == predictions_of_file


def _arguments(base: Path) -> list[str]:
    arguments = ["stages=[ia3_learning,evaluation]", "ia3_learning=llama/squad", "evaluation=ia3_llama/squad"]
    arguments += ["cluster_type=interactive"]
    arguments += [f"ia3_learning.model.language_model_path={quoted(base)}"]
    arguments += [f"evaluation.language_model_path={quoted(base)}"]
    for section in ("ia3_learning", "evaluation"):
        arguments += [f"{section}.run.model_train_name=tiny", *(f"{section}.{setting}" for setting in LAPTOP)]
    arguments += ["ia3_learning.model.tensor_model_parallel_size=1", "evaluation.tensor_model_parallel_size=1"]
    arguments += ["ia3_learning.model.global_batch_size=8", "ia3_learning.model.micro_batch_size=4"]
    arguments += ["ia3_learning.trainer.max_epochs=1", "ia3_learning.trainer.val_check_interval=1.0"]
    return [*arguments, "ia3_learning.model.data.num_workers=0", "evaluation.inference.tokens_to_generate=4"]
