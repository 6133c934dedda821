# SPDX-License-Identifier: Apache-2.0
"""Warn about 16-bit precision on a CPU that has no instructions for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemo_launcher.clusters.interactive.cluster import Interactive
from nemo_launcher.config.precision import PRECISIONS
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.memory import packs_bf16
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Evaluation, Learning
from nemo_launcher.runtime.gpu_devices import has_gpu


def slow_precisions(stages: Sequence[Stage], kind: str) -> Iterator[Problem]:
    """Yield a warning for each stage that computes in bf16 or fp16 on this machine's CPU, where fp32 is faster.

    kind: the kind of cluster. Nothing is known about the CPUs of other machines.
    """
    if kind != Interactive.cluster_type:
        return
    for stage in stages:
        if not isinstance(stage, Learning | Evaluation):
            continue
        trainer = stage.section.trainer
        on_gpu = trainer.accelerator != "cpu" and has_gpu()
        dtype = PRECISIONS[trainer.precision]
        if on_gpu or dtype == "float32" or (dtype == "bfloat16" and packs_bf16()):
            continue
        key = stage.key("trainer.precision")
        what = f"is {trainer.precision}: this CPU computes {dtype} many times slower than float32"
        yield Problem(key, what, f"{key}=32, which needs twice the memory for the weights")
