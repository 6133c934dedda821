# SPDX-License-Identifier: Apache-2.0
"""No stage overwrites inputs, another stage's outputs or foreign files; checked at launch and in the script."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.archives import GPT, write_adapter, write_base
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

NEMO_PATH = "adapter_learning.model.nemo_path"


def _evaluation(workplace: Workplace, **changes: object) -> list[str]:
    """Launch a chain of training and evaluation with predictions beside the workplace."""
    values = {
        "language_model_path": workplace.base_model,
        "trainer.accelerator": "cpu",
        "pred_file_path": workplace.root / "out" / "predictions.txt",
        **changes,
    }
    given = [f"evaluation.{key}={value}" for key, value in values.items()]
    return [*workplace.arguments, "stages=[adapter_learning,evaluation]", *given]


def test_an_output_that_is_an_input_is_refused_whatever_it_is_called(launch: Launch, workplace: Workplace) -> None:
    base, folder = workplace.base_model, workplace.root
    (folder / "soft.nemo").symlink_to(base)
    os.link(base, folder / "hard.nemo")
    (folder / "again").symlink_to(folder)
    before = base.read_bytes()
    for path in (base, folder / "soft.nemo", folder / "hard.nemo", folder / "again/base.nemo", f"{folder}/./base.nemo"):
        result = launch(*workplace.arguments, f"{NEMO_PATH}={path}")
        assert result.status == 2
        assert f"{NEMO_PATH} (command line): " in result.err
        assert "is read as adapter_learning.model.language_model_path" in result.err
    assert base.read_bytes() == before
    assert not workplace.results.exists()


def test_an_output_in_a_folder_that_is_read_is_refused(launch: Launch, workplace: Workplace) -> None:
    base = workplace.root / "base"
    with tarfile.open(workplace.base_model) as archive:
        archive.extractall(base, filter="data")
    given = [*workplace.arguments, f"adapter_learning.model.language_model_path={base}"]
    result = launch(*given, f"{NEMO_PATH}={base}/adapter.nemo")
    assert result.status == 2
    assert f"is inside {base}, which is read as adapter_learning.model.language_model_path" in result.err
    assert launch(*given, f"{NEMO_PATH}={workplace.root}/base2/adapter.nemo", "debug=True").status == 0


def test_the_way_out_of_a_copy_that_is_in_the_way_is_another_nemo_file(launch: Launch, workplace: Workplace) -> None:
    """Following the fix must not lead to the same message."""
    (workplace.root / "model.safetensors").write_bytes(b"weights of somebody's")
    for path in ("model.nemo", "adapter.safetensors"):
        result = launch(*workplace.arguments, f"{NEMO_PATH}={workplace.root / path}")
        assert result.status == 2
        assert f"{NEMO_PATH}=/another/file.nemo" in result.err


def test_the_second_nemo_is_an_output_too(launch: Launch, workplace: Workplace) -> None:
    copy = workplace.root / "logs/checkpoints/mine.nemo"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(workplace.base_model.read_bytes())
    prefix = "adapter_learning.exp_manager"
    given = [*workplace.arguments, f"{prefix}.explicit_log_dir={workplace.root}/logs", f"{prefix}.name=mine"]
    assert launch(*given, "debug=True").status == 0
    result = launch(*given, f"{prefix}.checkpoint_callback_params.save_nemo_on_train_end=True")
    assert result.status == 2
    assert f"{copy} already exists, and this job did not make it" in result.err
    assert f"-> choose another name: {prefix}.name=my_adapter" in result.err


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("pred_file_path", "truth.jsonl", "is read as evaluation.ground_truth_file_path"),
        ("summary_path", "truth.jsonl", "is read as evaluation.ground_truth_file_path"),
        ("pred_file_path", "base.nemo", "is read as adapter_learning.model.language_model_path"),
        ("pred_file_path", "new/predictions.jsonl", "would be written twice"),
        ("summary_path", "out/squad_metric.json", "is also written as evaluation.pred_file_path"),
        ("summary_path", "out/SQUAD_METRIC.json", "is also written as evaluation.pred_file_path"),
    ],
)
def test_evaluations_outputs(launch: Launch, workplace: Workplace, key: str, name: str, said: str) -> None:
    (workplace.root / "truth.jsonl").write_text('{"answer": ["x"]}\n')
    truth = {"ground_truth_file_path": workplace.root / "truth.jsonl"}
    result = launch(*_evaluation(workplace, **truth | {key: workplace.root / name}), "debug=True")
    assert result.status == 2
    assert said in result.err


def test_a_later_stage_must_not_write_what_an_earlier_one_reads_or_writes(launch: Launch, workplace: Workplace) -> None:
    adapter = workplace.root / "adapters" / "adapter.nemo"
    for written in (adapter, adapter.with_suffix(".safetensors")):
        changes = {"pred_file_path": written, "adapter_model_file": adapter}
        result = launch(*_evaluation(workplace, **changes), f"{NEMO_PATH}={adapter}")
        assert result.status == 2
        assert "evaluation.pred_file_path" in result.err
    assert not adapter.parent.exists()


def test_what_the_job_did_not_make_is_refused_and_stays(launch: Launch, workplace: Workplace) -> None:
    foreign = {
        "notes.txt": lambda path: path.write_text("mine"),
        "base2.nemo": lambda path: write_base(path, GPT),
        "adapter.nemo": write_adapter,
        "model.safetensors": lambda path: path.write_text("weights of somebody"),
    }
    for name, make in foreign.items():
        path = workplace.root / name
        make(path)
        before = path.read_bytes()
        result = launch(*workplace.arguments, f"{NEMO_PATH}={path.with_suffix('.nemo') if 'safe' in name else path}")
        assert result.status == 2
        assert f"{path} already exists, and this job did not make it" in result.err
        assert path.read_bytes() == before


def test_the_fix_that_is_printed_works(launch: Launch, workplace: Workplace) -> None:
    (workplace.root / "mine.nemo").write_text("mine")
    refusal = launch(*workplace.arguments, f"{NEMO_PATH}={workplace.root}/mine.nemo").err
    assert f"{NEMO_PATH}=/another/file.nemo" in refusal
    assert launch(*workplace.arguments, f"{NEMO_PATH}={workplace.root}/another/file.nemo").status == 0


def test_a_job_may_be_launched_again_over_its_own_outputs(launch: Launch, workplace: Workplace) -> None:
    elsewhere = f"{NEMO_PATH}={workplace.root}/shared/adapter.nemo"
    for _ in range(2):
        result = launch(*workplace.arguments, elsewhere)
        assert result.status == 0, result.err
    another = launch(*workplace.arguments, elsewhere, "adapter_learning.run.model_train_name=other")
    assert another.status == 2
    assert "this job did not make it" in another.err


def test_runs_of_a_sweep_need_outputs_of_their_own(launch: Launch, workplace: Workplace) -> None:
    sweep = ["-m", *workplace.arguments, "adapter_learning.model.adapter_tuning.adapter_dim=4,8"]
    result = launch(*sweep, f"{NEMO_PATH}={workplace.root}/adapter.nemo")
    assert result.status == 2
    assert "would be written by several runs of this sweep (adapter_dim=4; adapter_dim=8)" in result.err
    assert not (workplace.root / "adapter.nemo").exists()
    assert launch(*sweep).status == 0


def test_places_where_nothing_can_be_written(launch: Launch, workplace: Workplace) -> None:
    (workplace.root / "folder.nemo").mkdir()
    (workplace.root / "file").touch()
    os.mkfifo(workplace.root / "pipe.nemo")
    for name, said in {
        "folder.nemo": "is a folder, not a file",
        "file/adapter.nemo": "file is a file, not a folder",
        "pipe.nemo": "is a device or pipe, not a file",
    }.items():
        result = launch(*workplace.arguments, f"{NEMO_PATH}={workplace.root}/{name}")
        assert result.status == 2
        assert said in result.err


def test_a_full_disk_is_told_at_launch(launch: Launch, workplace: Workplace, monkeypatch) -> None:
    real = os.statvfs
    full = workplace.root / "full"
    full.mkdir()

    def statvfs(path: Any) -> Any:
        found = list(real(path))
        found[4] = 0 if Path(path) == full else found[4]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    result = launch(*workplace.arguments, f"{NEMO_PATH}={full}/adapter.nemo")
    assert result.status == 2
    assert f"the disk of {full} is full" in result.err
