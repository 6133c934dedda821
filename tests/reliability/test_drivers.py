# SPDX-License-Identifier: Apache-2.0
"""Each driver with a small count; `python -m tests.reliability.<driver>` runs it with a large one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_launcher.clusters import CLUSTERS
from tests.reliability.mutation_kinds import KINDS
from tests.reliability.small_counts import run_driver

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="traces system calls with ptrace"),
]


@pytest.mark.extended
def test_killed_jobs_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    report = run_driver("kills", tmp_path, "--count", "12")
    assert report["totals"]["kills"] >= 12
    assert report["totals"]["kills_at_calls"] > 0


def test_jobs_that_die_at_a_call_go_on(tmp_path: Path) -> None:
    report = run_driver("crash_points", tmp_path, "--count", "5")
    assert report["totals"]["died"] == report["totals"]["points"] == 20
    assert set(report["calls"]) == {"training", "conversion", "evaluation", "preparation"}
    named = {call.split()[0] for calls in report["calls"].values() for call in calls}
    assert {"write", "fsync", "mkdir"} <= named  # the calls of a save are traced
    assert named & {"rename", "renameat", "renameat2"}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_refused_or_used(kind: str, tmp_path: Path) -> None:
    report = run_driver(
        "mutations", tmp_path, "--kind", kind, "--count", "6" if kind in ("hf", "images", "gguf") else "40"
    )
    assert set(report["shares"]) == {kind}
    counts = report["counts"][kind]
    # A damaged record affects one row, and a damaged cache is recreated: nothing is refused for either.
    assert counts["mutants"] == counts["accepted"] + counts.get("refused", 0)


@pytest.mark.extended
def test_hostile_text_is_refused_or_passed_through(tmp_path: Path) -> None:
    report = run_driver("hostile_names", tmp_path, "--count", "1")
    assert set(report["counts"]) == set(CLUSTERS)
    assert report["totals"]["passed_through"] > report["totals"]["refused"] > 0
    assert {"cluster.comment:text", "env_vars:value", "evaluation.data_paths:entry"} <= set(report["keys"])
