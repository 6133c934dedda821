# SPDX-License-Identifier: Apache-2.0
"""SQuAD v1.1's metrics: exact match and F1 of normalised answers."""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation and articles, with single spaces between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over normalised words; 0.0 without a common word."""
    predicted_words, answer_words = normalize(prediction).split(), normalize(answer).split()
    num_common = (Counter(predicted_words) & Counter(answer_words)).total()
    if num_common == 0:
        return 0.0
    precision = num_common / len(predicted_words)
    recall = num_common / len(answer_words)
    return 2 * precision * recall / (precision + recall)
