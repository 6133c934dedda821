# SPDX-License-Identifier: Apache-2.0
"""Write the score of each question, and the figures of all questions, beside the predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from nemo_launcher.data.jsonl import json_line
from nemo_launcher.evaluation.figures import Chosen, Json, scores_of
from nemo_launcher.evaluation.file_names import figures_name, scores_name
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.ranking import best_choice
from nemo_launcher.evaluation.questions import Question
from nemo_launcher.files.atomic import atomic_path, finite_or_none


def write_scores(
    pred_file_path: str | Path,
    chosen: Chosen,
    questions: Sequence[Question],
    answered: Mapping[str, Sequence[Answered]],
    figures: Json,
    *,
    like: Sequence[str],
) -> None:
    """Write <pred_file>_scores.jsonl and <pred_file>_metrics.json; docs/reference.md describes them.

    answered: the answers of each model, by its name. like: the data files, which the scores quote.
    """
    path = Path(pred_file_path)
    with ExitStack() as renames:
        temporary = renames.enter_context(atomic_path(path.with_name(scores_name(path.name)), like=like))
        with temporary.open("w", encoding="utf-8") as file:
            for line in score_lines(chosen, questions, answered):
                file.write(json_line(line) + "\n")
        text = json.dumps(finite_or_none(figures), indent=2, ensure_ascii=False, allow_nan=False)
        temporary = renames.enter_context(atomic_path(path.with_name(figures_name(path.name)), like=like))
        temporary.write_text(text + "\n", encoding="utf-8")


def remove_scores(pred_file_path: str | Path) -> None:
    """Remove the scores and figures of an earlier run, which are not about the present predictions."""
    path = Path(pred_file_path)
    for name in (scores_name(path.name), figures_name(path.name)):
        path.with_name(name).unlink(missing_ok=True)


def score_lines(
    chosen: Chosen, questions: Sequence[Question], answered: Mapping[str, Sequence[Answered]]
) -> list[Json]:
    """Return one object for each question, in order: its answers, and the prediction and scores of each model."""
    lines: list[Json] = [
        {
            "question": question.number,
            "record": question.label.where,
            "task": question.task,
            "group": question.group,
            "answers": question.label.answers,
        }
        for question in questions
    ]
    for task, metrics in chosen.by_task.items():
        places = [place for place, question in enumerate(questions) if question.task == task]
        for name, of_model in answered.items():
            of_task = [of_model[place] for place in places]
            scores = {metric.name: scores_of(metric, of_task) for metric in metrics if metric.scores is not None}
            for index, place in enumerate(places):
                of_question = {metric: of_metric[index] for metric, of_metric in scores.items()}
                lines[place][name] = {
                    "prediction": of_task[index].prediction.strip(),
                    "scores": finite_or_none(of_question),
                    **_choice(of_task[index]),
                }
    return lines


def _choice(question: Answered) -> Json:
    """Return the best answer choice and the log-probabilities of all, in nats; {} for a question without."""
    best = best_choice(question)
    return {} if best is None else {"choice": best, "choice_scores": dict(question.choice_scores or {})}
