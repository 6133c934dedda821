# SPDX-License-Identifier: Apache-2.0
"""The frozen model and its adapters equal NVIDIA's NeMo 1.20."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nemo_launcher.data import prefix_tree
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from tests import oracle
from tests.engine import gradients_of, named_gradients

pytestmark = pytest.mark.unit

LOGITS = {"rtol": 0, "atol": 1e-5}
GRADIENTS = {"rtol": 0, "atol": 1e-6}


def logits_of(base: Base, batch: dict[str, Any]) -> torch.Tensor:
    plan = AttentionPlan([Group(0, (batch["input_ids"].size(1),))])
    return base.model(batch["input_ids"], batch["position_ids"], plan)


def masked_loss(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    losses = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
    return (losses * batch["loss_mask"].flatten()).sum() / batch["loss_mask"].sum()


@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_frozen_base_gives_nemos_logits(name: str) -> None:
    case, base = oracle.load(name), oracle.load_frozen(name)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(base, case["batch"]), case["base_logits"], **LOGITS)
        torch.testing.assert_close(logits_of(base, case["fixed"]["batch"]), case["fixed"]["base_logits"], **LOGITS)


@pytest.mark.parametrize("which", ["batch", "fixed"])
@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_adapters_give_nemos_logits_loss_and_gradients(name: str, which: str) -> None:
    case, base, adapters = oracle.load_adapted(name)
    wanted = case if which == "batch" else case["fixed"]
    logits = logits_of(base, wanted["batch"])
    torch.testing.assert_close(logits, wanted["logits"], **LOGITS)
    loss = masked_loss(logits, wanted["batch"])
    assert float(loss) == pytest.approx(float(wanted["loss"]), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(named_gradients(adapters), oracle.gradients(wanted["grads"]), **GRADIENTS)


@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_adapters_change_logits_beyond_the_tolerance(name: str) -> None:
    """Adapters change logits by far more than the tolerances above."""
    case = oracle.load(name)
    assert (case["logits"] - case["base_logits"]).abs().max() > 1e-2


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_packed_batch_gives_nemos_logits_loss_and_gradients(
    name: str, share_prefix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_tree, "MIN_SHARED_TOKENS", 2)  # toy prompts share few tokens
    case, base, adapters = oracle.load_adapted(name)
    samples = oracle.samples(case)[:4]
    batch = pack(samples, share_prefix=share_prefix)
    assert (batch.tokens.numel() < int(batch.lengths.sum())) == share_prefix
    with torch.no_grad():
        logits = base.model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups))[0]
    for row, (places, length) in enumerate(zip(batch.cache_index, batch.lengths, strict=True)):
        torch.testing.assert_close(logits[places[:length]], case["logits"][row, :length], **LOGITS)
    loss, gradients, _ = gradients_of(base, adapters, samples, micro_batch_size=4, share_prefix=share_prefix)
    assert loss == pytest.approx(float(case["loss"]), rel=1e-6)
    torch.testing.assert_close(gradients, oracle.gradients(case["grads"]), **GRADIENTS)


@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_nemo_compat_gives_nemos_mean_over_micro_batches(name: str) -> None:
    case, base, adapters = oracle.load_adapted(name)
    options: dict[str, Any] = {"micro_batch_size": 2, "share_prefix": False}
    loss, gradients, _ = gradients_of(base, adapters, oracle.samples(case)[:4], nemo_compat=True, **options)
    assert loss == pytest.approx(float(case["accum"]["loss_mean"]), rel=1e-6)
    torch.testing.assert_close(gradients, oracle.gradients(case["accum"]["grads"]), **GRADIENTS)
    by_token, _, _ = gradients_of(base, adapters, oracle.samples(case)[:4], **options)
    assert abs(by_token - loss) > 1e-4  # the micro-batches hold different numbers of answer tokens
