# SPDX-License-Identifier: Apache-2.0
"""The usual learning rates of the methods, and their table in docs/small-data.md."""

from __future__ import annotations

import re

import pytest

from nemo_launcher.adapters.registry import methods
from nemo_launcher.adapters.settings import FEW_STEPS
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit


def test_the_guide_has_the_rates() -> None:
    text = (REPOSITORY / "docs/small-data.md").read_text(encoding="utf-8")
    assert f"| method | up to {FEW_STEPS} steps |" in text
    rows = {match[0]: match[1:] for match in re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)}
    rates = {name: method.settings.LEARNING_RATES for name, method in methods().items()}
    assert rows == {name: (f"{rate.few:g}", f"{rate.many:g}") for name, rate in rates.items()}
