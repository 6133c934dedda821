# SPDX-License-Identifier: Apache-2.0
"""A machine with the device files of GPUs, for tests on machines without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.runtime import gpu_devices


def devices(monkeypatch: pytest.MonkeyPatch, folder: Path, numbers: str) -> None:
    """Give this machine GPU devices with these numbers, as a container may have any of them."""
    for name in ("ctl", "-uvm", *numbers):
        (folder / f"nvidia{name}").touch()
    monkeypatch.setattr(gpu_devices, "NVIDIA_DEVICES", f"{folder}/nvidia[0-9]*")
    monkeypatch.setattr(gpu_devices, "OTHER_DEVICES", (f"{folder}/dxg",))
