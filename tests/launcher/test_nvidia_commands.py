# SPDX-License-Identifier: Apache-2.0
"""The command lines of NVIDIA's launcher: the same script, a warning, or a refusal with what to do instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.workplace import Result, Workplace

from .nvidia_commands import Line, lines, outcome, script_of

pytestmark = pytest.mark.unit
Launch = Callable[..., Result]


def test_the_table_is_whole() -> None:
    numbers = [line.number for line in lines()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 40


@pytest.mark.parametrize("line", lines(), ids=[line.number for line in lines()])
def test_a_documented_command_line(
    line: Line, launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMO_LAUNCHER_DEBUG", "1")
    result = launch(*line.arguments(workplace.root))
    found, text = outcome(result.status, script_of(workplace.root), result.err)
    assert found == line.outcome, result.err
    for part in line.parts:
        assert part in text
    assert "Traceback" not in result.err


def test_without_stages_the_choice_of_another_stage_is_a_mistake(launch: Launch, workplace: Workplace) -> None:
    """The user expects prompt learning to run; only with `stages` is it certain that it is not to."""
    result = launch(*workplace.arguments, "prompt_learning=gpt3/squad", "debug=True")
    assert result.status == 2
    assert "prompt_learning: prompt learning is not part of this system" in result.err
    assert "did you mean" not in result.err
