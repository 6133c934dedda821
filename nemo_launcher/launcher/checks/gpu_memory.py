# SPDX-License-Identifier: Apache-2.0
"""Warn about trainings that probably need more memory than this machine's GPUs have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemo_launcher.clusters.interactive.cluster import Interactive
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.estimate import gpu_bytes
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning
from nemo_launcher.runtime.gpu_devices import has_gpu, largest_gpu


def small_gpus(stages: Sequence[Stage], kind: str, probe: LaunchProbe) -> Iterator[Problem]:
    """Yield a warning for each training that is estimated to need more memory than this machine's largest GPU has.

    kind: the kind of cluster. Nothing is known about the GPUs of other machines. The job itself refuses weights that do
    not fit, and cuts micro-batches that do not.
    """
    if kind != Interactive.cluster_type or not has_gpu():
        return
    needs = [(stage, gpu_bytes(stage, probe)) for stage in stages if isinstance(stage, Learning)]
    size = largest_gpu() if any(needed for _, needed in needs) else None
    for stage, needed in needs:
        if size is None or needed is None or needed <= size:
            continue
        key = stage.key("model.micro_batch_size")
        what = f"needs about {needed / 2**30:.1f} GiB on each GPU, and those of this machine have {size / 2**30:.1f}"
        larger = stage.key("model.tensor_model_parallel_size")
        fix = f"lower {key} or {stage.key('model.data.max_seq_length')}, or share the model among GPUs ({larger})"
        yield Problem(key, what, fix)
