# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated text by overlap with a reference: ROUGE-L (rouge-score), BLEU and chrF (sacrebleu)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nemo_launcher.evaluation.metrics.metric import Answered, Metric, text_metric
from nemo_launcher.evaluation.metrics.registry import register

if TYPE_CHECKING:
    from nemo_launcher.evaluation.metrics.metric import FloatArray

_ORDER = 4  # the n-grams of BLEU
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""


@functools.cache
def rouge_scorer() -> Any:
    """Return rouge-score's RougeScorer.

    It imports absl, whose log handler keeps what is sys.stderr then. When logging is configured anew, as Hydra does,
    the handler closes that file unless it is the process's own.
    """
    with contextlib.redirect_stderr(sys.__stderr__):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer


@functools.cache
def _rouge() -> Any:
    scorer = rouge_scorer()
    from rouge_score.tokenizers import DefaultTokenizer

    return scorer(["rougeL"], tokenizer=_AllScripts(DefaultTokenizer(use_stemmer=True)))


class _AllScripts:
    """rouge-score's tokenizer, which sees a-z and 0-9 alone, for Latin text; of other scripts, words in lower case.

    In scripts without spaces between words, each character counts.
    """

    def __init__(self, latin: Any) -> None:
        self._latin = latin

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        found: list[str] = []
        for kind, characters in itertools.groupby(text.lower(), _kind):
            run = "".join(characters)
            found += self._latin.tokenize(run) if kind == "latin" else [run] if kind == "word" else run
        return found


def _kind(character: str) -> str:
    """Return whether a character is Latin or separates words, is part of a word, or is a word of its own."""
    if character < "\u0370" or "\u1e00" <= character <= "\u1eff" or unicodedata.category(character)[0] not in "LMN":
        return "latin"
    return "alone" if _UNSPACED.match(character) else "word"


def rouge_l(prediction: str, answer: str) -> float:
    """Return ROUGE-L's F-measure over words, for Latin text stemmed and as rouge-score computes it."""
    return float(_rouge().score(answer, prediction)["rougeL"].fmeasure)


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)  # for single sentences


def bleu_statistics(questions: Sequence[Answered]) -> FloatArray:
    """Return matches and totals of 1- to 4-grams, and the lengths of prediction and closest answer: [questions, 10]."""
    import numpy as np

    found = (_bleu().sentence_score(question.prediction, list(question.answers)) for question in questions)
    rows = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * _ORDER + 2)


def bleu_of(sums: FloatArray) -> FloatArray:
    """Return the BLEU of sums of statistics, from 0 to 1; [..., 10] -> [...]. sacrebleu's default for a corpus."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    def one(row: FloatArray) -> float:
        counts, totals = row[:_ORDER].astype(int).tolist(), row[_ORDER : 2 * _ORDER].astype(int).tolist()
        predicted, closest = row[2 * _ORDER :].astype(int).tolist()
        score = BLEU.compute_bleu(counts, totals, predicted, closest, smooth_method="exp")
        return min(1.0, float(score.score) / 100)  # rounding

    return np.array([one(row) for row in sums.reshape(-1, sums.shape[-1])]).reshape(sums.shape[:-1])


def sentence_bleu(questions: Sequence[Answered]) -> list[float]:
    """Return the BLEU of each question alone, over the n-grams that its prediction is long enough to have."""
    found = (_bleu().sentence_score(question.prediction, list(question.answers)) for question in questions)
    return [float(score.score) / 100 for score in found]


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def chrf_statistics(questions: Sequence[Answered]) -> FloatArray:
    """Return the numbers of character n-grams in prediction, answer and both: [questions, 18] for n up to 6."""
    import numpy as np

    extract = _chrf()._extract_corpus_statistics  # of one segment, with one list for each of its references
    rows = [extract([question.prediction], [[answer] for answer in question.answers])[0] for question in questions]
    return np.array(rows, dtype=np.float64)


def chrf_of(sums: FloatArray) -> FloatArray:
    """Return the chrF2 of sums of statistics, from 0 to 1; [..., 18] -> [...]."""
    import numpy as np

    rows = sums.reshape(-1, sums.shape[-1]).tolist()
    return np.array([_chrf()._compute_f_score(row) / 100 for row in rows]).reshape(sums.shape[:-1])


def sentence_chrf(questions: Sequence[Answered]) -> list[float]:
    """Return the chrF2 of each question alone."""
    found: list[float] = chrf_of(chrf_statistics(questions)).tolist()
    return found


register(text_metric("rougeL", "ROUGE-L", rouge_l, library="rouge_score"))
register(
    Metric(
        name="bleu",
        title="BLEU",
        kind="corpus",
        statistics=bleu_statistics,
        figure=bleu_of,
        scores=sentence_bleu,
        library="sacrebleu",
    )
)
register(
    Metric(
        name="chrf",
        title="chrF",
        kind="corpus",
        statistics=chrf_statistics,
        figure=chrf_of,
        scores=sentence_chrf,
        library="sacrebleu",
    )
)
