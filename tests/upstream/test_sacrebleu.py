# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of sacrebleu that the bootstrap of chrF depends on."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


@leans_on(
    "nemo_launcher/evaluation/metrics/overlap.py",
    "_extract_corpus_statistics",
    "_compute_f_score",
)
def test_chrf_of_a_corpus_is_that_of_the_sum_of_its_sentences_statistics() -> None:
    metric = CHRF()
    predictions, references = ["the cat sat", "a dog ran home"], ["a cat sat down", "dogs run home"]
    rows = [
        metric._extract_corpus_statistics([prediction], [[reference]])[0]
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    assert metric._compute_f_score(np.sum(rows, axis=0).tolist()) == pytest.approx(
        metric.corpus_score(predictions, [references]).score
    )
