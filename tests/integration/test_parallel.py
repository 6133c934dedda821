"""Parallel sizes change nothing: losses, gradients and adapters are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.world import Case, results_of, run_case

pytestmark = pytest.mark.integration

METHODS = ("parallel_adapter", "linear_adapter", "ia3")
TOLERANCE = {"rtol": 0, "atol": 1e-5}


# --- steps ------------------------------------------------------------------------------------------------------


def assert_same(result: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Losses, gradients before and after clipping, initial and final weights are the same."""
    for mine, theirs in zip(result["steps"], wanted["steps"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        torch.testing.assert_close(mine["gradients"], theirs["gradients"], **TOLERANCE)
        torch.testing.assert_close(mine["clipped"], theirs["clipped"], **TOLERANCE)
    for name in ("initial", "start", "end"):
        torch.testing.assert_close(
            result[name], wanted[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert result["validation"] == pytest.approx(wanted["validation"], rel=1e-5)
    assert result["numbers"] == wanted["numbers"]


class Steps:
    """Cases by name, run in one process and in a world of several."""

    def __init__(self, ranks: int, cases: dict[str, Case], folder: Path) -> None:
        self.cases = cases
        self.wanted = {single: run_case(single) for single in {case.alone(): None for case in cases.values()}}
        starts = [(case, self.single(name)["start"]) for name, case in cases.items()]
        self.results = results_of(ranks, starts, folder)

    def single(self, name: str) -> dict[str, Any]:
        return self.wanted[self.cases[name].alone()]

    def check(self, name: str) -> None:
        place = list(self.cases).index(name)
        for results in self.results:
            assert_same(results[place], self.single(name))
