# SPDX-License-Identifier: Apache-2.0
"""A metric of numbers: the last number of the prediction is the right one."""

from __future__ import annotations

import math
import re

from nemo_launcher.evaluation.metrics.metric import text_metric
from nemo_launcher.evaluation.metrics.registry import register

RELATIVE_TOLERANCE = 1e-6
"""Two numbers are equal if they differ by at most this share of the larger one."""

_NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>[-+\u2212]?)[$€£¥]?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,3})?(?P<percent>\s?%)?",
    re.ASCII,
)


def last_number(text: str) -> float | None:
    """Return the last number in a text; None if there is none.

    `1,234.50` has thousands separators, `5%` is 0.05, `1e-3` has an exponent, and a currency sign may precede a number.
    A hyphen behind a letter or digit is no minus sign.
    """
    found = None
    for match in _NUMBER.finditer(text):
        value = float(match["digits"].replace(",", "") + (match["exponent"] or ""))
        found = (-value if match["sign"] in ("-", "\u2212") else value) / (100 if match["percent"] else 1)
    return found


def numeric(prediction: str, answer: str) -> float:
    """Return 1.0 if the last numbers of both are equal up to RELATIVE_TOLERANCE, else 0.0."""
    predicted, right = last_number(prediction), last_number(answer)
    if predicted is None or right is None:
        return 0.0
    return float(math.isclose(predicted, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0))


register(text_metric("numeric", "number", numeric, kind="proportion"))
