# SPDX-License-Identifier: Apache-2.0
"""The training model compared with NVIDIA's own training runs, and the parts of the frozen base that it keeps."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from nemo.core.optim.lr_scheduler import prepare_lr_scheduler

from nemo_launcher.adapters.archive import new_adapters, read_adapter
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.optimizers import OPTIMIZERS, SCHEDULES
from nemo_launcher.config.sections.optimizer import Optimizer, Schedule
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.prompts import GPTSample
from nemo_launcher.megatron.frozen_mlp import FrozenMLP
from nemo_launcher.megatron.frozen_norm import FrozenRMSNorm
from nemo_launcher.training.checkpoint_file import read_checkpoint
from nemo_launcher.training.nemo.model import AdapterLearningModel
from nemo_launcher.training.nemo.optimization import optimization_config
from nemo_launcher.training.nemo.trainer import make_trainer
from tests import oracle
from tests.engine import frozen_weights, gradients_of, random_tree, tiny_gpt_nemo
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit

FITS = {"fit_adapter_gpt_6": "adapter_gpt", "fit_ia3_gpt_6": "ia3_gpt"}


class Recorder(Callback):
    """Records inputs and results of each optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def on_before_optimizer_step(self, trainer: Trainer, module: AdapterLearningModel, optimizer: Any) -> None:
        grads = [parameter.grad for parameter in module.adapters.parameters()]
        self.rates.append(optimizer.param_groups[0]["lr"])  # the logged rate is rounded to fp32
        self.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            self.val_losses.append(float(trainer.callback_metrics["val_loss"]))


def make_model(
    config: dict[str, Any],
    base: Base,
    train: Sequence[GPTSample],
    validation: Sequence[GPTSample],
    callbacks: Sequence[Any],
) -> tuple[AdapterLearningModel, Trainer]:
    job = loaded(config)
    trainer = make_trainer(job.section.trainer, callbacks, Path(job.section.run.results_dir))
    settings = Loaded(job.section.model, job.values["model"])
    adapters = new_adapters(base, settings.values)
    return AdapterLearningModel(settings, trainer, base, adapters, train, validation), trainer


def oracle_config(case: dict[str, Any], folder: Path, steps: int, changes: dict[str, Any] | None = None) -> dict:
    """Return NeMo's settings as our job's; batches follow the order of the samples."""
    config = job_config(Path("unused"), folder, folder, {"trainer.max_epochs": -1, "trainer.max_steps": steps})
    del config["model"]["adapter_tuning"]  # IA3 has no such section
    config["model"] |= oracle.model_config(case) | {"nemo_path": str(folder / "a.nemo"), "nemo_compat": True}
    config["model"]["data"] |= {"share_prefix": False, "shuffle": False}
    config["trainer"] |= {"num_sanity_val_steps": 0, "val_check_interval": 1.0} | (changes or {})
    return config


def rows_as_samples(case: dict[str, Any], fit: dict[str, Any]) -> list[GPTSample]:
    """Return the samples in the order in which NeMo's trainer drew them."""
    known = {tuple(sample.input_ids[:-1]): sample for sample in oracle.samples(case)}
    drawn = []
    for batch in fit["rec"]["train"]:
        for row in batch["ids"].tolist():
            drawn += [sample for ids, sample in known.items() if tuple(row[: len(ids)]) == ids]
    assert len(drawn) == 4 * len(fit["rec"]["train"])
    return drawn


# --- NeMo's training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_gpt", "adapter_gpt_llama", "adapter_post_gpt", "ia3_gpt", "ia3_gpt_llama"])
def test_eight_steps_are_nemos(name: str, tmp_path: Path) -> None:
    case, base = oracle.load(name), oracle.load_frozen(name)
    wanted, recorder = case["train"], Recorder()
    samples = oracle.samples(case)
    config = oracle_config(case, tmp_path, 8, {"limit_val_batches": 0})
    model, trainer = make_model(config, base, samples, samples, [recorder])
    model.adapters.load_state_dict(case["adapter_state_dict"], name)
    trainer.fit(model)
    assert recorder.rates == pytest.approx(wanted["lr"], rel=0, abs=1e-15)
    assert recorder.losses == pytest.approx(wanted["loss"], rel=2e-6)
    assert recorder.norms == pytest.approx(wanted["grad_norm"], rel=1e-4)
    torch.testing.assert_close(model.adapters.state_dict(), dict(wanted["final_adapter_state_dict"]), rtol=0, atol=5e-6)


@pytest.mark.parametrize("fit_name", FITS)
def test_fit_is_nemos(fit_name: str, tmp_path: Path) -> None:
    """A complete trainer.fit of NeMo: its batches, its validation after each epoch, its final adapter."""
    case, fit, base = oracle.load(FITS[fit_name]), oracle.load(fit_name), oracle.load_frozen(FITS[fit_name])
    recorder = Recorder()
    config = oracle_config(case, tmp_path, 6, {"val_check_interval": 2})
    model, trainer = make_model(config, base, rows_as_samples(case, fit), oracle.samples(case), [recorder])
    model.adapters.load_state_dict(fit["init"], fit_name)
    trainer.fit(model)
    steps = fit["rec"]["train"]
    assert recorder.rates == pytest.approx([step["lr"] for step in steps], rel=0, abs=1e-15)
    assert recorder.losses == pytest.approx([step["loss"] for step in steps], rel=2e-6)
    batches = [batch["loss"] for batch in fit["rec"]["val"]][2:]  # the first two belong to NeMo's sanity check
    means = [sum(batches[i : i + 2]) / 2 for i in range(0, len(batches), 2)]
    assert recorder.val_losses == pytest.approx(means, rel=2e-6)
    torch.testing.assert_close(model.adapters.state_dict(), dict(fit["final"]), rtol=0, atol=5e-6)
    _, exported = read_adapter(tmp_path / "a.nemo")
    torch.testing.assert_close(exported, model.adapters.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("constant_steps", "steps"), [(0, 20), (5, 20)])
def test_schedule_by_its_formula(constant_steps: int, steps: int, tiny_base: Path, tmp_path: Path) -> None:
    """facts: NeMo's cosine, with and without constant steps, warm-up 4, minimum 0.001."""
    changes = {"trainer.max_epochs": -1, "trainer.max_steps": steps, "trainer.limit_val_batches": 0}
    changes |= {f"model.optim.sched.{k}": v for k, v in (("warmup_steps", 4), ("constant_steps", constant_steps))}
    changes |= {"model.optim.sched.min_lr": 0.001, "model.optim.lr": 0.01}
    recorder = Recorder()
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, load_base(tiny_base), random_tree(0, 300, 8), random_tree(1, 300), [recorder])
    trainer.fit(model)

    def rate(k: int) -> float:
        decay = steps - 4 - constant_steps
        if k <= 4:
            return 0.01 * k / 4 if constant_steps else 0.01 * (k + 1) / 5
        if k <= 4 + decay:
            return 0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi * (k - 4) / decay))
        return 0.001

    assert recorder.rates == pytest.approx([rate(k) for k in range(steps)], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("nemo_compat", [True, False])
def test_raising_max_steps_on_resume(nemo_compat: bool, tmp_path: Path) -> None:
    """NeMo continues at a rate of zero; here the longer schedule applies, except with nemo_compat."""
    case = oracle.load("adapter_gpt")
    samples = oracle.samples(case)
    config = oracle_config(case, tmp_path, 6, {"limit_val_batches": 0, "enable_checkpointing": True})
    config["model"]["nemo_compat"] = nemo_compat
    model, trainer = make_model(config, oracle.load_frozen("adapter_gpt"), samples, samples, [Recorder()])
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    config["trainer"]["max_steps"] = 10
    recorder = Recorder()
    model, trainer = make_model(config, oracle.load_frozen("adapter_gpt"), samples, samples, [recorder])
    trainer.fit(model, ckpt_path=tmp_path / "last.ckpt")
    whole = Recorder()
    model, trainer = make_model(config, oracle.load_frozen("adapter_gpt"), samples, samples, [whole])
    trainer.fit(model)
    wanted = [step["lr"] for step in oracle.load("fit_adapter_gpt_10")["rec"]["train"]]
    assert wanted == [0.0] * 4
    assert recorder.rates == pytest.approx(wanted if nemo_compat else whole.rates[6:], rel=1e-12)


# --- the frozen base --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> tuple[Any, ...]:
    """A model after three steps, its trainer, its base and the base's original weights."""
    changes: dict[str, Any] = {"trainer.max_steps": 3, "trainer.enable_checkpointing": True}
    changes["model.adapter_tuning.adapter_dropout"] = 0.1
    if request.param == "ia3":
        changes = {key: value for key, value in changes.items() if "adapter_tuning" not in key}
        changes["model.adapter_tuning"] = None
    base = load_base(tiny_base)
    before = {name: tensor.clone() for name, tensor in base.model.named_parameters()}
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, base, random_tree(0, 300, 16), random_tree(1, 300), [])
    trainer.fit(model)
    return model, trainer, base, before


@pytest.mark.parametrize("trained", ["adapter", "ia3"], indirect=True)
def test_frozen_weights_stay_as_they_are(trained: tuple[Any, ...]) -> None:
    model, _, base, before = trained
    after = frozen_weights(base.model)
    assert len(after) > len(before)
    assert not any(weight.is_meta for weight in after.values())
    torch.testing.assert_close({name: after[name] for name in before}, before, rtol=0, atol=0)
    assert all(parameter.grad is None for name, parameter in base.model.named_parameters() if name in before)
    assert all(parameter.grad is not None for parameter in model.adapters.parameters())


@pytest.mark.parametrize("trained", ["adapter", "ia3"], indirect=True)
def test_optimizer_and_checkpoint_hold_adapters_alone(trained: tuple[Any, ...], tmp_path: Path) -> None:
    model, trainer, _, _ = trained
    (optimizer,) = trainer.optimizers
    in_optimizer = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(in_optimizer) == sorted(map(id, model.adapters.parameters()))
    assert {id(parameter) for parameter in optimizer.state} == set(in_optimizer)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(checkpoint["state_dict"], model.adapters.state_dict(), rtol=0, atol=0)
    assert all(":" in key for key in checkpoint["state_dict"])
    numbers = sum(tensor.numel() for tensor in all_tensors(checkpoint))
    per_parameter_step = len(in_optimizer)
    assert numbers <= 3 * model.adapters.num_parameters() + per_parameter_step + 64  # a weight and two moments each


def all_tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in all_tensors(item)]


@pytest.mark.parametrize("on", [True, False])
def test_torch_compile_is_for_what_has_a_compiled_form(on: bool, tiny_base: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, tmp_path, tmp_path, {"model.torch_compile": on})
    base, samples = load_base(tiny_base), random_tree(0, 300)
    make_model(config, base, samples, samples, [])
    kinds = (FrozenMLP, FrozenRMSNorm)
    parts = [module.compiles for module in base.model.modules() if isinstance(module, kinds)]
    assert parts == [on] * (3 * len(base.model.decoder.layers) + 1)


def test_train_mode_reaches_the_adapters_alone(tiny_base: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, tmp_path, tmp_path)
    samples = random_tree(0, 300)
    model, _ = make_model(config, load_base(tiny_base), samples, samples, [])
    for mode in (True, False):
        model.train(mode)
        adapters = {module for adapter in model.adapters.adapters.values() for module in adapter.modules()}
        assert {module.training for module in adapters} == {mode}
        frozen = [module for module in model.frozen_model.modules() if module not in adapters]
        assert not any(module.training for module in frozen)
        assert model.training == mode


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "steps"), [(-1, 3, 6), (5, 3, 5), (5, -1, 5), (50, 2, 4), (3, 1, 2)]
)
def test_max_steps_and_max_epochs_both_end_the_training(
    max_steps: int, max_epochs: int, steps: int, tiny_base: Path, tmp_path: Path
) -> None:
    changes = {"trainer.max_steps": max_steps, "trainer.max_epochs": max_epochs, "trainer.limit_val_batches": 0}
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, load_base(tiny_base), random_tree(0, 300, 8), random_tree(1, 300), [])
    assert model.total_steps() == steps
    trainer.fit(model)
    assert trainer.global_step == steps


@pytest.mark.parametrize("overwritten", [True, False], ids=["overwritten", "touched"])
def test_a_base_that_is_overwritten_in_place_ends_the_training(
    overwritten: bool, tiny_base: Path, tmp_path: Path
) -> None:
    """Its weights are mapped; another modification time, or another file with its name, has no effect."""
    path = Path(shutil.copy(tiny_base, tmp_path / "base.nemo"))
    other = tiny_gpt_nemo(tmp_path / "other.nemo", seed=1)
    changes = {"trainer.max_epochs": 1, "trainer.val_check_interval": 1.0}
    config = job_config(path, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, load_base(path), random_tree(0, 300, 8), random_tree(1, 300), [])
    if overwritten:
        with path.open("r+b") as file:
            file.write(other.read_bytes())
    os.utime(path, ns=(1, 1))
    adapter = tmp_path / "results/adapter.nemo"
    if overwritten:
        with pytest.raises(UserError, match="was overwritten while it is in use"):
            trainer.fit(model)
    else:
        trainer.fit(model)
    assert adapter.exists() != overwritten


def test_a_last_batch_that_is_not_full_is_trained_too(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"trainer.max_epochs": 1, "trainer.limit_val_batches": 0}
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, load_base(tiny_base), random_tree(0, 300, 9), random_tree(1, 300), [])
    trainer.fit(model)
    assert trainer.global_step == 3
    assert model.figures.samples == 9


def test_validation_loss_is_the_mean_over_answer_tokens(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 1, "model.optim.lr": 1e-30}
    changes |= {"trainer.val_check_interval": 1.0, "model.optim.weight_decay": 0.0}
    recorder = Recorder()
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    validation = random_tree(1, 300, 9)
    model, trainer = make_model(config, load_base(tiny_base), random_tree(0, 300, 8), validation, [recorder])
    trainer.fit(model)
    wanted, _, _ = gradients_of(
        _AsBase(model.frozen_model), model.adapters, validation, micro_batch_size=1, share_prefix=False
    )
    assert recorder.val_losses == pytest.approx([wanted], rel=1e-6)
    assert model.best_val_loss == pytest.approx(wanted, rel=1e-6)


class _AsBase:
    def __init__(self, model: Any) -> None:
        self.model = model


def test_the_launcher_knows_what_optimizers_and_schedules_take() -> None:
    """Its torch-free tables are compared with nemo_toolkit's registries."""
    base = {"lr": 1e-3, "weight_decay": None, "sched": Schedule(name="CosineAnnealing", warmup_steps=2)}
    for name, entry in OPTIMIZERS.items():
        refused = []
        for key, value in (("betas", [0.9, 0.98]), ("eps", 1e-8), ("weight_decay", 0.01)):
            with contextlib.suppress(UserError):
                optimization_config(Optimizer(**{"name": name, **base, key: value}), 20)
                continue
            refused.append(key)
        assert tuple(refused) == entry.not_taken, name
    for name, entry in SCHEDULES.items():
        schedule = {"name": name, "warmup_steps": 2, "min_lr": 0.0}
        assert _works(schedule) == (not entry.unusable), name
        if not entry.unusable:
            assert _works(schedule | {"constant_steps": 3}) == entry.constant_steps, name
            assert _works({"name": name, "warmup_steps": 0}) == (not entry.needs_warmup), name


def _works(schedule: dict[str, Any]) -> bool:
    """Return whether a schedule can be created and stepped, with or without warm-up."""
    for changed in (schedule, schedule | {"warmup_steps": None}):
        try:
            config = optimization_config(Optimizer(name="adamw", lr=1e-3, sched=Schedule(**changed)), 20)
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)
            scheduler = prepare_lr_scheduler(optimizer, config.sched)["scheduler"]
            optimizer.step()
            scheduler.step()
        except (UserError, TypeError, ValueError):
            continue
        return True
    return False
