# SPDX-License-Identifier: Apache-2.0
"""Configuration sections as objects: what a job reads from its `_hydra.yaml`."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.sections import STAGES, AdapterLearning, Ia3Learning
from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.fields import stays_out
from nemo_launcher.config.keys import hints
from nemo_launcher.config.load import load
from nemo_launcher.config.precision import PRECISIONS, STORED_PRECISIONS
from nemo_launcher.config.schema import fits
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.config.sections.learning import LearningData, LearningTrainer
from nemo_launcher.errors import UserError
from nemo_launcher.families.registry import ENGINES, hugging_face_model
from nemo_launcher.runtime.precision import dtype_of, stored_precision
from tests.jobs import evaluation_config, job_config

pytestmark = pytest.mark.unit

ENGINE = ("adapters", "conversion", "data", "evaluation", "families", "training")
READS_OMEGACONF = {
    *("training/nemo/optimization.py", "training/export.py", "training/checkpoint_file.py"),
    *("evaluation/session.py", "evaluation/prompt_settings.py"),
}
"""nemo_toolkit takes a DictConfig, which checkpoints store as plain values; --set has its syntax."""


def section(tmp_path: Path) -> dict[str, Any]:
    return job_config(tmp_path / "base.nemo", tmp_path, tmp_path)


def test_a_job_reads_the_defaults_of_the_sections(tmp_path: Path) -> None:
    """A file written by an older release lacks later keys."""
    values = section(tmp_path)
    for key in ("num_workers", "pin_memory", "share_prefix", "pack", "layout", "max_dropped_share", "shuffle"):
        del values["model"]["data"][key]
    job = load(values, AdapterLearning)
    defaults = LearningData(
        train_ds=job.section.model.data.train_ds, validation_ds=job.section.model.data.validation_ds
    )
    assert job.section.model.data == defaults
    assert job.values["model"]["data"]["num_workers"] == defaults.num_workers
    assert job.section.model.adapter_tuning.adapter_dim == values["model"]["adapter_tuning"]["adapter_dim"]


def test_optional_keys_stay_out_of_records_and_have_a_value_in_the_job(tmp_path: Path) -> None:
    job = load(section(tmp_path), AdapterLearning)
    assert "check_val_every_n_epoch" not in job.values["trainer"]
    assert job.section.trainer.check_val_every_n_epoch == 1
    null = section(tmp_path)
    null["trainer"]["check_val_every_n_epoch"] = None
    assert load(null, AdapterLearning).section.trainer.check_val_every_n_epoch is None


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    values = section(tmp_path)
    values["model"]["optim"]["lr"] = "fast"
    values["trainer"]["presision"] = 32
    del values["model"]["nemo_path"]
    with pytest.raises(UserError) as refused:
        load(values, AdapterLearning)
    assert {"model.optim.lr", "trainer.presision", "model.nemo_path"} == {p.where for p in refused.value.problems}


def test_a_section_cannot_be_changed(tmp_path: Path) -> None:
    job = load(evaluation_config(tmp_path, tmp_path, tmp_path, tmp_path), Evaluation)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.section.inference.batch_size = 1  # type: ignore[misc]


def sections_below(schema: Any) -> set[type]:
    found = {schema} if dataclasses.is_dataclass(schema) else set()
    for kind in hints(schema).values() if found else getattr(schema, "__args__", ()):
        found |= sections_below(kind)
    return found


def test_what_a_job_takes_for_an_absent_key_is_a_value_of_that_key() -> None:
    """None means "absent" for keys that cannot be null; only the launcher reads such keys."""
    read_by_the_launcher_alone = {
        *("model_train_name", "convert_name", "convert_dir", "replace_sampler_ddp", "gpt_model_file"),
        *("adapter_learning_dir", "ia3_learning_dir", "logger", "all_probs", "compute_logprob"),
    }
    for schema in set().union(*map(sections_below, STAGES.values())):
        assert schema.__dataclass_params__.frozen, schema
        for field in dataclasses.fields(schema):
            if stays_out(field) and field.name not in read_by_the_launcher_alone:
                assert fits(field.default, hints(schema)[field.name]), f"{schema.__name__}.{field.name}"


def test_the_engine_reads_objects() -> None:
    root = Path(__file__).parents[1] / "nemo_launcher"
    found = {
        str(path.relative_to(root))
        for room in ENGINE
        for path in (root / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "omegaconf"
    }
    assert found == READS_OMEGACONF


@pytest.mark.parametrize("precision", PRECISIONS)
def test_launcher_and_engine_take_the_same_precisions(precision: str | int, tmp_path: Path) -> None:
    values = section(tmp_path)
    values["trainer"]["precision"] = precision
    trainer: LearningTrainer = load(values, AdapterLearning).section.trainer
    dtype = dtype_of(trainer.precision, "trainer.precision")
    assert dtype is dtype_of(stored_precision(dtype), "")


def test_every_type_of_weights_can_be_asked_for() -> None:
    assert {dtype_of(name, "") for name in STORED_PRECISIONS.values()} == {torch.float16, torch.float32, torch.bfloat16}


def test_every_family_has_an_engine_and_converters_and_a_file_for_each_method() -> None:
    conf = Path(__file__).parents[1] / "conf"
    for name, family in FAMILIES.items():
        assert ENGINES[family.engine].name == family.engine
        assert (conf / f"conversion_hf2nemo/{family.converter}.yaml").is_file()
        for kind, architecture in KINDS.items():
            if architecture.family == name:
                assert hugging_face_model(kind) is ENGINES[family.engine].hugging_face[kind]
        for group in ("adapter_learning", "ia3_learning"):
            assert (conf / group / name).is_dir(), name


def test_ia3_has_no_adapter_settings(tmp_path: Path) -> None:
    values = section(tmp_path)
    with pytest.raises(UserError, match=r"model\.adapter_tuning: unknown key"):
        load(values, Ia3Learning)
