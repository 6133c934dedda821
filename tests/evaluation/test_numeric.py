# SPDX-License-Identifier: Apache-2.0
"""The metric of numbers reads a number as a whole, in every usual notation, or not at all."""

from __future__ import annotations

import pytest

from nemo_launcher.evaluation.metrics.numeric import last_number, numeric

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.50", 1234.5),
        ("-3", -3.0),
        ("\u22124", -4.0),
        ("5%", 0.05),
        ("50 %", 0.5),
        ("The answer is 42.", 42.0),
        ("3 + 4 = 7", 7.0),
        ("#### 72", 72.0),
        ("-$1,000", -1000.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5-7", 7.0),
        ("v2", None),
        ("none", None),
        ("", None),
        ("3/4", 0.75),
        ("-1/2", -0.5),
        ("1'234", 1234.0),
        ("1\u202f234", 1234.0),
        ("1_234", 1234.0),
        ("1.234,5", 1234.5),
        ("1.234.567", 1234567.0),
        ("12,50", 12.5),
        ("1,2,3", 3.0),
        ("'5'", 5.0),
        ("1e300", 1e300),
        # of these, a part could be read as a number
        ("1.2.3", None),
        ("1/2/2024", None),
        ("3/0", None),
        ("0x10", None),
        ("3\u00bd", None),
        ("1e3000", None),
        ("9" * 5000, None),
        ("it is 5, see 1.2.3", 5.0),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    found = last_number(text)
    assert (None if found is None else float(found)) == number


def test_numbers_are_equal_up_to_the_tolerance() -> None:
    for prediction, answer, right in (
        ("so 1,000", "1000.0", 1.0),
        ("0.3333333", "0.33333333", 1.0),
        ("0.333", "0.334", 0.0),
        ("5", "5%", 0.0),
        ("0", "0.0", 1.0),
        ("none", "3", 0.0),
        ("-0", "0", 1.0),
        ("1/2", "3/2", 0.0),
        ("1/2", "0.5", 1.0),
        ("12,50", "15,50", 0.0),
        ("1.234.567", "1.234.999", 0.0),
        ("1'000", "2'000", 0.0),
        ("1" * 310, "2" * 310, 0.0),
        ("1e400", "1e401", 0.0),
        ("1e400", "10e399", 1.0),
        ("1e-400", "0", 0.0),
    ):
        assert numeric(prediction, answer) == right, (prediction, answer)
