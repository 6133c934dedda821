# SPDX-License-Identifier: Apache-2.0
"""Training of T5 adapters: NVIDIA's own runs, and complete jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from nemo_launcher.adapters.archive import load_adapter, new_adapters, read_adapter
from nemo_launcher.config.load import Loaded
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.training.nemo.model import AdapterLearningModel
from nemo_launcher.training.nemo.trainer import make_trainer
from nemo_launcher.training.run import train
from tests import t5
from tests.jobs import loaded
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit


class Recorder(Callback):
    """Records the results of each optimizer step and validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.val_losses.append(float(trainer.callback_metrics["val_loss"]))


def _fit(
    name: str, start: dict[str, Any], order: list[T5Sample], steps: int, folder: Path, **trainer_options: Any
) -> tuple[Recorder, AdapterLearningModel]:
    """Train like NeMo: its settings, its initial weights, its order of samples."""
    case, base, recorder = t5.load_case(name), t5.frozen_base(name), Recorder()
    config = t5.training_config(Path("unused"), folder, folder)
    del config["model"]["adapter_tuning"]  # IA3 has no such section
    config = OmegaConf.merge(config, {"model": t5.model_config(case)})
    config.model.nemo_path, config.model.nemo_compat = str(folder / "adapter.nemo"), True
    config.model.data.shuffle = False
    config = OmegaConf.merge(config, {"trainer": {"max_epochs": -1, "max_steps": steps} | trainer_options})
    job = loaded(config)
    settings = Loaded(job.section.model, job.values["model"])
    trainer = make_trainer(job.section.trainer, [recorder])
    adapters = new_adapters(base, settings.values)
    model = AdapterLearningModel(settings, trainer, base, adapters, order, t5.examples(case))
    model.adapters.load_state_dict(start, name)
    trainer.fit(model)
    return recorder, model


# --- NVIDIA's runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["adapter_t5", "adapter_post_t5", "linear_t5", "ia3_t5", "linear_t5_hft5", "ia3_t5_hft5"]
)
def test_eight_steps_are_nemos(name: str, tmp_path: Path) -> None:
    case = t5.load_case(name)
    wanted, order = case["train"], t5.examples(case)
    recorder, model = _fit(name, case["adapter_state_dict"], order, 8, tmp_path, limit_val_batches=0)
    assert recorder.rates == pytest.approx(wanted["lr"], rel=0, abs=1e-15)
    assert recorder.losses == pytest.approx(wanted["loss"], rel=2e-6)
    final = {key: dict(tensors) for key, tensors in wanted["final_adapter_state_dict"].items()}
    torch.testing.assert_close(model.adapters.state_dict(), final, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", t5.KINDS)
def test_a_whole_fit_is_nemos(kind: str, tmp_path: Path) -> None:
    """A complete trainer.fit of NeMo: its batches, its validation every two steps, its final adapter."""
    name, fit = f"{kind}_t5", t5.load_case(f"fit_{kind}_t5_6")
    known = {tuple(sample.input_ids): sample for sample in t5.examples(t5.load_case(name))}
    rows = [row.tolist() for step in fit["rec"]["train"] for row in step["ids"]]
    order = [sample for row in rows for ids, sample in known.items() if tuple(row[: len(ids)]) == ids]
    assert len(order) == len(rows)
    recorder, model = _fit(name, fit["init"], order, 6, tmp_path, val_check_interval=2)
    assert recorder.rates == pytest.approx([step["lr"] for step in fit["rec"]["train"]], rel=0, abs=1e-15)
    assert recorder.losses == pytest.approx([step["loss"] for step in fit["rec"]["train"]], rel=2e-6)
    batches = [batch["loss"] for batch in fit["rec"]["val"]][2:]  # the first two belong to NeMo's sanity check
    means = [sum(batches[at : at + 2]) / 2 for at in range(0, len(batches), 2)]
    assert recorder.val_losses == pytest.approx(means, rel=2e-6)
    final = {key: dict(tensors) for key, tensors in fit["final"].items()}
    torch.testing.assert_close(model.adapters.state_dict(), final, rtol=0, atol=1e-5)


# --- jobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_job_learns_and_exports_an_adapter_that_loads(method: str, tmp_path: Path) -> None:
    base, data = t5.tiny_base(tmp_path / "base.nemo"), t5.write_data(tmp_path / "data")
    config = t5.training_config(base, data, tmp_path)
    del config.model.adapter_tuning
    config = OmegaConf.merge(config, {"model": model_section(method)})
    train(loaded(config))
    summary = json.loads((tmp_path / "results" / "training_summary.json").read_text())
    assert summary["best_val_loss"] > 0
    adapters, _ = load_adapter(config.model.nemo_path, load_base(base))
    assert adapters.num_parameters() == summary["trainable_parameters"]
    assert list((tmp_path / "results").rglob("*last.ckpt"))


def test_a_job_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stops in its second epoch and is restarted ends like an uninterrupted one."""
    base, data = t5.tiny_base(tmp_path / "base.nemo"), t5.write_data(tmp_path / "data")
    train(loaded(t5.training_config(base, data, tmp_path / "whole")))
    step = AdapterLearningModel.training_step

    def break_off(self: AdapterLearningModel, batch: Any, index: int) -> torch.Tensor:
        if self.trainer.global_step == 3:
            raise RuntimeError("no power")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterLearningModel, "training_step", break_off)
        with pytest.raises(RuntimeError, match="no power"):
            train(loaded(t5.training_config(base, data, tmp_path / "parts")))
    train(loaded(t5.training_config(base, data, tmp_path / "parts")))
    assert "resuming at step 2" in capsys.readouterr().out
    parts, whole = (read_adapter(tmp_path / name / "adapter.nemo")[1] for name in ("parts", "whole"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_the_wrong_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base, data = t5.tiny_base(tmp_path / "base.nemo"), t5.write_data(tmp_path / "data")
    with pytest.raises(UserError, match="is a T5 checkpoint, but the stage is for GPT"):
        train(loaded(t5.training_config(base, data, tmp_path, {"run.model_family": "gpt3"})))
    with pytest.raises(UserError, match="decoder_starts_with_pad: True"):
        train(loaded(t5.training_config(base, data, tmp_path, {"model.data.decoder_starts_with_pad": False})))
    assert not (tmp_path / "results").exists()
