# SPDX-License-Identifier: Apache-2.0
"""A metric of numbers: the last number of the prediction is the right one."""

from __future__ import annotations

import re
from fractions import Fraction

from nemo_launcher.evaluation.metrics.metric import text_metric
from nemo_launcher.evaluation.metrics.registry import register

RELATIVE_TOLERANCE = Fraction(1, 10**6)
"""Two numbers are equal if they differ by at most this share of the larger one."""

_LONGEST = 300
"""Longer runs of digits are not read as numbers."""
_BETWEEN = "',_\u2019\u00a0\u2009\u202f"  # thousands separators; a space separates two numbers
_RUN = re.compile(
    rf"(?<![\w.])(?<!\d[,'\u2019/])(?P<sign>[-+\u2212]?)[$€£¥]?(?P<body>\.?\d+(?:[./{_BETWEEN}]\d+)*)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3}))?(?!\w*\d|[eE][-+]\d|[\u00bc-\u00be\u2150-\u215e])(?P<percent>\s?%)?",
    re.ASCII,
)
_FORMS = (
    re.compile(r"\d+|\d*\.\d+"),
    re.compile(rf"\d{{1,3}}(?P<by>[{_BETWEEN}])\d{{3}}(?:(?P=by)\d{{3}})*(?:\.\d+)?"),
)
"""Plain numbers, and those with thousands separators."""
_POINTS = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d+,\d+")
"""Numbers with a decimal comma, or with points as thousands separators."""


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text; None if there is none.

    `1,234.50`, `1'234` and `1.234,50` have thousands separators, `0,5` a decimal comma, `5%` is 0.05, `3/4` is 0.75,
    `1e-3` has an exponent, and a currency sign may precede a number. A hyphen behind a letter or digit is no minus
    sign. What can be read only in part, such as a version, is not a number.
    """
    found = None
    for match in _RUN.finditer(text):
        body = match["body"]
        size = _value(body)
        if size is None and "," in body:  # a list
            size = _value(body.rpartition(",")[2])
        if size is not None:
            size *= Fraction(10) ** int(match["exponent"] or 0) / (100 if match["percent"] else 1)
            found = -size if match["sign"] in ("-", "\u2212") else size
    return found


def _value(body: str) -> Fraction | None:
    """Return the number that a run of digits and separators is as a whole; None if it is none."""
    if len(body) > _LONGEST:
        return None
    if any(form.fullmatch(body) for form in _FORMS):
        return Fraction(re.sub(f"[{_BETWEEN}]", "", body))
    if _POINTS.fullmatch(body):
        return Fraction(body.replace(".", "").replace(",", "."))
    upper, _, lower = body.partition("/")
    if upper.isdecimal() and lower.isdecimal() and int(lower):
        return Fraction(int(upper), int(lower))
    return None


def numeric(prediction: str, answer: str) -> float:
    """Return 1.0 if the last numbers of both are equal up to RELATIVE_TOLERANCE, else 0.0."""
    predicted, right = last_number(prediction), last_number(answer)
    if predicted is None or right is None:
        return 0.0
    return float(abs(predicted - right) <= RELATIVE_TOLERANCE * max(abs(predicted), abs(right)))


register(text_metric("numeric", "number", numeric, kind="proportion"))
