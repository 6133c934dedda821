# SPDX-License-Identifier: Apache-2.0
"""Training against NeMo's own: its steps, its whole fit, its learning rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.families.base import load_base
from nemo_launcher.families.gpt.samples import GPTSample
from tests import oracle
from tests.engine import random_tree
from tests.jobs import job_config
from tests.training.models import Recorder, make_model

pytestmark = pytest.mark.unit

FITS = {"fit_adapter_gpt_6": "adapter_gpt", "fit_ia3_gpt_6": "ia3_gpt"}


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
def test_a_whole_fit_is_nemos(fit_name: str, tmp_path: Path) -> None:
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
