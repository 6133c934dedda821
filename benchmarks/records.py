# SPDX-License-Identifier: Apache-2.0
"""The records that a benchmark's sides train on, with their template, in one file per measurement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.data.squad_format import read_questions
from nemo_launcher.data.templates import TaskTemplate

SQUAD = TaskTemplate(
    taskname="squad",
    prompt_template="context: {context} question: {question} answer: {answer}",
    answer_only_loss=True,
    answer_field="answer",
)


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one task."""

    template: TaskTemplate
    """The template that makes prompts of them."""
    records: Sequence[Mapping[str, str]]
    """The fields of each record."""

    def save(self, path: Path) -> Path:
        """Write the file that `load` reads; return its path."""
        content = {"template": dataclasses.asdict(self.template), "records": [dict(one) for one in self.records]}
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Records:
        """Return the records in a file that `save` has written."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(TaskTemplate.from_config(content["template"]), content["records"])


def squad_records(path: str | Path, count: int | None = None) -> Records:
    """Return the first `count` questions (None: all) of a file in the SQuAD format."""
    questions = read_questions(Path(path))[:count]
    return Records(SQUAD, [{"context": q.context, "question": q.question, "answer": q.answers[0]} for q in questions])
