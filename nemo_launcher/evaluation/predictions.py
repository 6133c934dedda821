# SPDX-License-Identifier: Apache-2.0
"""Write an evaluation's predictions: the documented text file, a JSON Lines file, and the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from nemo_launcher.data.jsonl import json_line
from nemo_launcher.data.labels import Label
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.file_names import METRIC_NAME, OF_BASE, RECORDS_NAME, figures_name, scores_name
from nemo_launcher.evaluation.squad_score import Score, split_by_answer
from nemo_launcher.evaluation.squad_score import evaluate as squad_score
from nemo_launcher.files.atomic import atomic_path


def check_names(pred_file_path: str) -> None:
    """Raise UserError when the text file has the name of another file that the evaluation writes."""
    name = Path(pred_file_path).name
    others = {prefix + other for prefix in ("", OF_BASE) for other in (RECORDS_NAME, METRIC_NAME)}
    if name in others | {scores_name(name), figures_name(name)}:
        what = f"{name} is the name of another file that the evaluation writes into this folder"
        raise UserError(Problem("pred_file_path", what, "name it predictions.txt"))


def score_of(predictions: Sequence[str], labels: Sequence[Label]) -> Score | None:
    """Return the score of predictions; None if the labels have no answers."""
    answers = [label.answers for label in labels if label.answers is not None]
    return squad_score(predictions, answers) if answers else None


def write_predictions(
    pred_file_path: str | Path,
    prompts: Iterable[str],
    predictions: Sequence[str],
    labels: Sequence[Label],
    score: Score | None,
    *,
    joint: str,
    prefix: str = "",
) -> None:
    """Write the files of one set of predictions; the metrics only if there is a score.

    A line of predictions.jsonl has the record's short fields, `record` (its file and line), `answers` if there are any,
    and `prediction`. prompts: the continued texts. joint: separates prompt and prediction in the text file,
    where line breaks become spaces so that each record is one line. prefix: a prefix of the file names.
    """
    path = Path(pred_file_path)
    metric_path = path.with_name(prefix + METRIC_NAME)
    with ExitStack() as renames:  # all files are written before the first is renamed
        if score is not None:
            text = json.dumps(_metric(score, predictions, labels), indent=2, allow_nan=False)
            renames.enter_context(atomic_path(metric_path)).write_text(text + "\n", encoding="utf-8")
        with renames.enter_context(atomic_path(path.with_name(prefix + RECORDS_NAME))).open(
            "w", encoding="utf-8"
        ) as file:
            for label, prediction in zip(labels, predictions, strict=True):
                answers = {} if label.answers is None else {"answers": label.answers}
                values = label.fields | answers | {"prediction": one_line(prediction).strip()}
                file.write(json_line({"record": label.where} | values) + "\n")
        with renames.enter_context(atomic_path(path.with_name(prefix + path.name))).open("w", encoding="utf-8") as file:
            for pair in zip(prompts, predictions, strict=True):
                file.write(one_line(joint.join(pair)) + "\n")
        metric_path.unlink(missing_ok=True)  # from an earlier run, and not about these predictions


def _metric(score: Score, predictions: Sequence[str], labels: Sequence[Label]) -> dict[str, float]:
    """Return the content of squad_metric.json, in percent; for unanswerable questions with the keys of SQuAD 2's."""
    metric = {name: 100 * value for name, value in score.values.items()} | {"total": score.total}
    for part, of_part in split_by_answer(predictions, [label.answers or [] for label in labels]).items():
        metric[f"{part}_exact"], metric[f"{part}_f1"] = (100 * value for value in of_part.values.values())
        metric[f"{part}_total"] = of_part.total
    return metric


def one_line(text: str) -> str:
    """Return `text` with a space for each line break, including Unicode's and Python's."""
    return " ".join(text.replace("\r\n", "\n").splitlines())
