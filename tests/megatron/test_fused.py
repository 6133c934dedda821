# SPDX-License-Identifier: Apache-2.0
"""Fused operators: the kernels in Triton's interpreter, and what is said where they do not work."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nemo_launcher.config.sections.common import Kernels
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation import answer_keys
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron import fused, fused_check
from tests.meta import META

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
HAS_LIGER = find_spec("liger_kernel") is not None and find_spec("triton") is not None


@pytest.mark.skipif(not HAS_LIGER, reason="needs liger-kernel and triton: pip install liger-kernel triton")
def test_the_kernels_compute_what_torch_does() -> None:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    program = [sys.executable, str(ROOT / "tests/megatron/interpreted.py")]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.stdout.splitlines() == ["torch.float32 None", "torch.float16 None"], done.stderr[-2000:]


def test_a_missing_liger_is_told_once_and_torch_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fused_check, "find_spec", lambda name: None)
    assert not fused_check.uses_fused("auto", "model.fused_kernels", META, torch.bfloat16)
    assert "because liger-kernel does not work: it is not installed" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model\.fused_kernels=torch"):
        fused_check.uses_fused("liger", "model.fused_kernels", META, torch.bfloat16)


@pytest.mark.parametrize("choice", ["auto", "liger", "torch"])
def test_a_cpu_does_not_use_it(choice: Kernels) -> None:
    assert not fused_check.uses_fused(choice, "fused_kernels", torch.device("cpu"), torch.float32)


def test_a_broken_liger_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("PTX was compiled with an unsupported toolchain\nsecond line")

    monkeypatch.setattr(fused_check, "find_spec", lambda name: object())
    monkeypatch.setattr(fused, "rms_norm", broken)
    found = fused_check.fused_error(torch.device("cpu"), torch.float32)
    assert found == "PTX was compiled with an unsupported toolchain"


def test_a_liger_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_check, "find_spec", lambda name: object())
    monkeypatch.setattr(fused, "rms_norm", lambda x, weight, eps: x * weight)
    found = fused_check.fused_error(torch.device("cpu"), torch.float32)
    assert found == "rms_norm computes other values than torch"


def test_answers_of_fused_operators_are_kept_apart(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    plain = answer_keys.scores_key(base, {}, [], 1)
    fused.set_fused(base.model, True)
    assert answer_keys.scores_key(base, {}, [], 1) != plain
