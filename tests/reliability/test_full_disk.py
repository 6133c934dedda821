# SPDX-License-Identifier: Apache-2.0
"""The full-disk driver with a small count; it needs root to mount small file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.reliability.small_counts import run_driver

pytestmark = pytest.mark.integration


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_stages_on_full_disks_say_so_and_go_on_when_there_is_room(tmp_path: Path) -> None:
    report = run_driver("full_disk", tmp_path, "--count", "14", "--seed", "12")
    if "skipped" in report:
        pytest.skip("this machine does not let root mount a tmpfs")
    assert report["totals"]["cases"] == 14
    assert report["totals"]["full"] > 0
