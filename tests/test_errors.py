# SPDX-License-Identifier: Apache-2.0
"""Suggestions for misspelled words."""

from __future__ import annotations

import pytest

from nemo_launcher.errors import nearest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("word", "choices", "meant"),
    [
        ("--promt", ["--prompt", "--top-p"], "--prompt"),
        ("--tokens", ["--tokens-to-generate", "--top-k"], "--tokens-to-generate"),
        ("gpt3", ["gpt3/squad", "t5/squad"], "gpt3/squad"),
        ("entirely", ["other", "words"], None),
    ],
)
def test_the_nearest_choice(word: str, choices: list[str], meant: str | None) -> None:
    assert nearest(word, choices) == meant
