# SPDX-License-Identifier: Apache-2.0
"""The training model compared with NVIDIA's own training runs, and the parts of the frozen base that it keeps."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nemo.core.optim.lr_scheduler import prepare_lr_scheduler

from nemo_launcher.config.optimizers import OPTIMIZERS, SCHEDULES
from nemo_launcher.config.sections.optimizer import Optimizer, Schedule
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.frozen_mlp import FrozenMLP
from nemo_launcher.megatron.frozen_norm import FrozenRMSNorm
from nemo_launcher.training.checkpoint_file import read_checkpoint
from nemo_launcher.training.nemo.optimization import optimization_config
from tests.engine import frozen_weights, gradients_of, random_tree, tiny_gpt_nemo
from tests.jobs import job_config
from tests.methods import METHODS, model_section, with_setting
from tests.training.models import Recorder, make_model

pytestmark = pytest.mark.unit


# --- the frozen base --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=METHODS)
def trained(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ...]:
    """A model after three steps, its trainer, its base and the base's original weights."""
    dropout = {"adapter_dropout": 0.1} if request.param in with_setting("adapter_dropout") else {}
    block = model_section(request.param, **dropout).get("adapter_tuning")
    changes = {"trainer.max_steps": 3, "trainer.enable_checkpointing": True, "model.adapter_tuning": None}
    base = load_base(tiny_base)
    before = {name: tensor.clone() for name, tensor in base.model.named_parameters()}
    folder = tmp_path_factory.mktemp("trained")
    config = job_config(tiny_base, folder, folder, changes)
    config["model"] |= {} if block is None else {"adapter_tuning": block}
    model, trainer = make_model(config, base, random_tree(0, 300, 16), random_tree(1, 300), [])
    trainer.fit(model)
    return model, trainer, base, before


def test_frozen_weights_stay_as_they_are(trained: tuple[Any, ...]) -> None:
    model, _, base, before = trained
    after = frozen_weights(base.model)
    assert len(after) > len(before)
    assert not any(weight.is_meta for weight in after.values())
    torch.testing.assert_close({name: after[name] for name in before}, before, rtol=0, atol=0)
    assert all(parameter.grad is None for name, parameter in base.model.named_parameters() if name in before)
    assert all(parameter.grad is not None for parameter in model.adapters.parameters())


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
    assert model.best.val_loss == pytest.approx(wanted, rel=1e-6)


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
        assert tuple(refused) == entry.unsupported, name
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
