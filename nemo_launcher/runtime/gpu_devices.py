# SPDX-License-Identifier: Apache-2.0
"""The GPUs that a process on this machine may use, by their device files. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from glob import glob

NVIDIA_DEVICES = "/dev/nvidia[0-9]*"
OTHER_DEVICES = ("/dev/dxg", "/dev/kfd")
"""The devices of WSL and of ROCm, each of which stands for any number of GPUs."""
ANSWER_SECONDS = 5
"""How long nvidia-smi may take."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def num_gpus(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many GPUs a process on this machine may use; None if there are some and their number is unknown.

    environment: that of the process, whose CUDA_VISIBLE_DEVICES is respected as CUDA does: the first number without a
    GPU ends the list.
    """
    devices = len(glob(NVIDIA_DEVICES))
    if not devices:
        return None if any(map(glob, OTHER_DEVICES)) else 0
    visible = environment.get(VISIBLE)
    if visible is None:
        return devices
    names = [name.strip() for name in visible.split(",")]
    for place, name in enumerate(names):
        if not (name.isdecimal() and int(name) < devices) and not name.startswith(("GPU-", "MIG-")):
            return place
    return len(names)


def has_gpu() -> bool:
    """Return whether a process on this machine may use a GPU."""
    return num_gpus() != 0


def largest_gpu() -> int | None:
    """Return the memory in bytes of this machine's largest GPU, as nvidia-smi says; None if it says nothing."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
        return max(int(line) for line in answer.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
