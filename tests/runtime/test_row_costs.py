# SPDX-License-Identifier: Apache-2.0
"""Costs of rows: interpolation, storage, and the fixed rules."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.runtime.row_costs import FIXED, Calibration, RowCosts

pytestmark = pytest.mark.unit

MEASURED = RowCosts((16, 64, 256), {1: (1.0, 2.0, 6.0), 2: (0.9, 1.3, 3.5)})
STEEP = RowCosts((16, 64), {1: (1.0, 10.0)})


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Calibration(cpu="a CPU", threads=2, model="a model", dtype="torch.float32", torch="2.13.0")


def test_costs_are_linear_between_and_beyond_the_measured_lengths() -> None:
    assert [MEASURED.cost(tokens, 1) for tokens in (16, 64, 256)] == [1.0, 2.0, 6.0]
    assert MEASURED.cost(40, 1) == pytest.approx(1.5)
    assert MEASURED.cost(160, 2) == pytest.approx(2.4)
    assert MEASURED.cost(40, 2) == pytest.approx(1.1)
    assert MEASURED.cost(448, 2) == pytest.approx(5.7)
    assert 0 < MEASURED.cost(1, 1) < 1.0
    assert STEEP.cost(8, 1) == pytest.approx(0.5)  # the line through the first lengths would be negative
    with pytest.raises(KeyError):
        MEASURED.cost(16, 4)


def test_costs_grow_with_the_length() -> None:
    noisy = RowCosts((16, 64), {1: (1.0, 1.0)})
    for costs, threads in ((MEASURED, 1), (MEASURED, 2), (noisy, 1), (STEEP, 1), (FIXED, 1), (FIXED, 3)):
        found = [costs.cost(tokens, threads) for tokens in range(1, 600, 7)]
        assert found == sorted(found)
        assert min(found) > 0


def test_by_the_fixed_rules_two_halves_cost_more_than_a_whole() -> None:
    assert 2 * FIXED.cost(100, 1) > FIXED.cost(200, 1)
    assert FIXED.cost(200, 1) / 2 < FIXED.cost(200, 2) < FIXED.cost(200, 1)
    assert not FIXED.is_calibrated


def test_costs_survive_storage(calibration: Calibration) -> None:
    for costs in (MEASURED, FIXED):
        assert RowCosts.from_dict(json.loads(json.dumps(costs.as_dict()))) == costs
    assert calibration.read() is None
    calibration.write(MEASURED)
    assert calibration.read() == MEASURED


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"lengths": [16], "seconds": {"1": [1.0]}},
        {"lengths": [16, 16], "seconds": {"1": [1.0, 2.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0, -2.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0, "2"]}},
        {"lengths": [16, 64], "seconds": {"one": [1.0, 2.0]}},
        {"lengths": [16, 64], "seconds": {}},
        {"lengths": "ab", "seconds": {"1": [1.0, 2.0]}},
        {"lengths": [True, 64], "seconds": {"1": [1.0, 2.0]}},
        {"lengths": [16, 10**299], "seconds": {"1": [1.0, 2.0]}},
        {"lengths": [16, 64], "seconds": {"1": [2.0, 1.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0, 1e308]}},
        {"lengths": [16, 64], "seconds": {"0": [1.0, 2.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0, 2.0], "9" * 5000: [1.0, 2.0]}},
        {"lengths": [16, 64], "seconds": {"1": [1.0, 2.0], "\u0662": [1.0, 2.0]}},
    ],
)
def test_damaged_costs_are_not_used(values: Any, calibration: Calibration) -> None:
    assert RowCosts.from_dict(values) is None
    calibration.path.parent.mkdir(parents=True)
    calibration.path.write_text(json.dumps({"costs": values}), encoding="utf-8")
    assert calibration.read() is None


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"costs": 1}', '{"costs": {"lengths": [], "seconds": {}}}', "\udcff", "[" * 100_000]
)
def test_a_damaged_file_is_not_used(text: str, calibration: Calibration) -> None:
    calibration.path.parent.mkdir(parents=True)
    calibration.path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert calibration.read() is None


@pytest.mark.parametrize("suffix", [".json", ".started"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_not_used(suffix: str, make: Any, calibration: Calibration) -> None:
    calibration.path.parent.mkdir(parents=True)
    make(calibration.path.with_suffix(suffix))
    assert calibration.read() is None
    assert not calibration.was_killed()
    with calibration.in_progress():
        pass


@pytest.mark.parametrize("home", ["", "somewhere", "~"])
def test_a_user_without_a_home_folder_keeps_nothing_in_the_current_folder(
    home: str, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: home)
    assert calibration.read() is None
    assert not calibration.was_killed()
    with calibration.in_progress():
        pass
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        calibration.write(MEASURED)
    assert not any(tmp_path.iterdir())


def test_what_a_calibration_is_for_decides_its_file(calibration: Calibration) -> None:
    other = Calibration(cpu="a CPU", threads=4, model="a model", dtype="torch.float32", torch="2.13.0")
    calibration.write(MEASURED)
    assert other.read() is None


def test_a_killed_calibration_is_noticed_once(calibration: Calibration) -> None:
    assert not calibration.was_killed()
    with calibration.in_progress():
        assert not calibration.was_killed()  # this process is alive
        child = os.fork()
        if child == 0:
            with calibration.in_progress():
                os._exit(0)  # like a kill: nothing after this line runs
        os.waitpid(child, 0)
        assert calibration.was_killed()
    assert not calibration.was_killed()
    assert not any(calibration.path.parent.iterdir())


@pytest.mark.parametrize(
    ("text", "age", "killed"),
    [("elsewhere-01234567-1-1", 5, False), ("elsewhere-01234567-1-1", 3600, True), ("", 5, True)],
)
def test_a_calibration_of_another_machine_counts_as_killed_after_a_while(
    text: str, age: float, killed: bool, calibration: Calibration
) -> None:
    """Whether its process lives cannot be seen from here; a killed one must not be repeated on each machine."""
    calibration.path.parent.mkdir(parents=True)
    started = calibration.path.with_suffix(".started")
    started.write_text(text, encoding="utf-8")
    then = time.time() - age
    os.utime(started, (then, then))
    assert calibration.was_killed() is killed
    assert started.exists() is not killed
