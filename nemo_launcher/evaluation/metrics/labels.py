# SPDX-License-Identifier: Apache-2.0
"""Metrics of classification: accuracy and macro-F1 of labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_launcher.errors import Problem
from nemo_launcher.evaluation.metrics.metric import Answered, Metric, text_metric
from nemo_launcher.evaluation.metrics.registry import register

if TYPE_CHECKING:
    from nemo_launcher.evaluation.metrics.metric import FloatArray


_MAX_COUNTS = 20_000_000
"""Maximum product of questions and labels; with 24 bytes each, 0.5 GB."""


def label_of(text: str) -> str:
    """Return a text as a label: NFC, with single spaces and none around it. Case and punctuation are kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def first_line(prediction: str) -> str:
    """Return the label in the first line of a prediction: text that goes on below a label is not part of it."""
    return label_of(prediction.strip().partition("\n")[0])


def accuracy(prediction: str, answer: str) -> float:
    """Return 1.0 if the prediction, or its first line, is the right label, else 0.0."""
    return float(label_of(answer) in (label_of(prediction), first_line(prediction)))


def counts(questions: Sequence[Answered]) -> FloatArray:
    """Return true positives, predictions and truths of each question, with a column per label: [questions, 3 * labels].

    Labels are the right answers, sorted. A prediction that is none of them counts for no label. Of several right
    answers, the predicted one is the truth, or else the first.
    """
    import numpy as np

    names = sorted({label_of(answer) for question in questions for answer in question.answers})
    column = {name: place for place, name in enumerate(names)}
    found = np.zeros((len(questions), 3, len(names)))
    for row, question in zip(found, questions, strict=True):
        whole, answers = label_of(question.prediction), [label_of(answer) for answer in question.answers]
        predicted = whole if whole in column else first_line(question.prediction)
        truth = predicted if predicted in answers else answers[0]
        row[2, column[truth]] = 1
        if predicted in column:
            row[1, column[predicted]] = 1
            row[0, column[predicted]] = predicted == truth
    return found.reshape(len(questions), -1)


def too_many_labels(names: Sequence[str], answers: Sequence[Sequence[str]]) -> list[Problem]:
    """Return a Problem if macro_f1 is named for answers that are no labels: the table of `counts` takes the memory.

    answers: the right answers of each question of a task.
    """
    labels = len({label_of(answer) for of_question in answers for answer in of_question})
    if "macro_f1" not in names or labels * len(answers) <= _MAX_COUNTS:
        return []
    what = f"macro_f1 is of labels, but {len(answers):,} questions have {labels:,} different answers"
    return [Problem("evaluation.metrics", what, "leave macro_f1 out; f1 compares words")]


def macro_f1(sums: FloatArray) -> FloatArray:
    """Return the mean F1 of the labels, of the sums of `counts`; [..., 3 * labels] -> [...].

    F1 is 2 tp / (predictions + truths). Labels without a truth in the sums, as in a resample, are left out of the mean.
    """
    import numpy as np

    true_positives, predicted, truths = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    of_label = 2 * true_positives / np.maximum(predicted + truths, 1)
    present = truths > 0
    mean: FloatArray = (of_label * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return mean


register(text_metric("accuracy", "accuracy", accuracy, kind="proportion"))
register(Metric(name="macro_f1", title="macro-F1", kind="corpus", statistics=counts, figure=macro_f1))
