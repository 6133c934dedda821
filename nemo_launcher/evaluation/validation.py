# SPDX-License-Identifier: Apache-2.0
"""Metrics of a validation: a model in training answers some of the validation records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from nemo_launcher.config.load import Loaded
from nemo_launcher.config.monitored import CHECKPOINTS_KEY, STOPPING_KEY, logged_name, metric_of, metrics_of, monitors
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.exp_manager import ValidationMetric
from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.data.given_records import GivenRecords
from nemo_launcher.data.labels import find_labels
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.records import count_records, read_records
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
from nemo_launcher.evaluation.answered import with_answers
from nemo_launcher.evaluation.figures import Chosen, value_of
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.likelihoods import Answers
from nemo_launcher.evaluation.metrics.metric import Answered, Metric
from nemo_launcher.evaluation.metrics.registry import find
from nemo_launcher.evaluation.questions import Question, questions_of
from nemo_launcher.evaluation.ranking import Ranking, rank_choices
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.base import Base
from nemo_launcher.runtime import ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationMetrics:
    """The metrics of a training's validations, and the questions that its model answers for them."""

    metrics: Sequence[Metric]
    """The metrics."""
    samples: Sequence[Sample]
    """The tokenised prompts."""
    questions: Sequence[Question]
    """Their right answers, in the same order."""
    ranking: Ranking
    """The questions whose answer choices are scored."""
    answers: Answers
    """The right answers whose likelihood a metric needs."""
    options: ValidationMetric
    """How answers are generated."""

    @classmethod
    def of(cls, base: Base, job: Loaded[Learning], templates: Sequence[TaskTemplate]) -> ValidationMetrics | None:
        """Return the metrics that checkpoints or early stopping of a job follow; None if they follow no metric.

        Raises UserError for records that do not fit, and if a metric scores none of the records.
        """
        manager = job.section.exp_manager
        names = metrics_of(manager)
        if not names:
            return None
        metrics = find(names, _key(job.section, names[0]))
        options = manager.validation_metric_params or ValidationMetric()
        given = _some_records(job.section.model.data, options.max_records)
        recipe = AdapterPrompts.read(job.values["model"])
        encoder = base.family.prompt_encoder(
            base.tokenizer, base.shape, recipe.settings, tokens_to_generate=options.tokens_to_generate
        )
        samples = encode_files([given], templates, encoder, max_dropped_share=1.0, withhold_answers=True)
        of_place = {label.where: label for label in find_labels([given], None, templates)}
        labels = [of_place[sample.source] for sample in samples]
        questions = questions_of([sample.record for sample in samples], labels, templates, None)
        chosen = Chosen(dict.fromkeys((question.task for question in questions), metrics))
        for name, metric in zip(names, metrics, strict=True):
            if not any(metric.scores_unanswerable or label.answers for label in labels):
                what = f"no validation record has an answer that {name} could score"
                raise UserError(
                    Problem(_key(job.section, name), what, "name other records in model.data.validation_ds")
                )
        return cls(
            metrics=metrics,
            samples=samples,
            questions=questions,
            ranking=Ranking.of(base, recipe, samples, questions, chosen),
            answers=Answers.of(base, recipe, samples, questions, chosen, nemo_compat=False),
            options=options,
        )

    def figures(self, base: Base) -> dict[str, float]:
        """Return the value of each metric for the model as it is now, by the name under which it is logged.

        All ranks must call this, and get rank 0's values. Raises UserError if the model's output is not finite.
        """
        predictions = self._predictions(base)
        size, ranking = self.options.batch_size, self.ranking
        found = rank_choices(base, ranking.samples, ranking.templates, batch_size=size) if ranking.places else []
        ranked = dict(zip(ranking.places, found, strict=True))
        likelihoods = self.answers.likelihoods(base, batch_size=size)
        answered = with_answers(self.questions, predictions, ranked, likelihoods)
        values = ranks.decide_on_rank_zero(lambda: self._values(answered))
        return {name: math.nan if value is None else value for name, value in values.items()}

    def __str__(self) -> str:
        """Return what a validation does."""
        names = " and ".join(metric.name for metric in self.metrics)
        return f"each validation also answers {len(self.samples)} validation records for {names}"

    def _values(self, answered: Sequence[Answered]) -> dict[str, float | None]:
        # JSON, in which ranks exchange values, has no infinite ones.
        values = {logged_name(metric.name): value_of(metric, answered) for metric in self.metrics}
        return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}

    def _predictions(self, base: Base) -> list[str]:
        """Return the answers; empty ones if no metric scores text."""
        if all(metric.needs != "text" for metric in self.metrics):
            return [""] * len(self.samples)
        sampling = Sampling(tokens_to_generate=self.options.tokens_to_generate)
        tokens = generate(base, self.samples, sampling, batch_size=self.options.batch_size)
        texts = [base.family.text(base.tokenizer, ids) for ids in tokens]
        return [question.template.scored_answer(text) for question, text in zip(self.questions, texts, strict=True)]


def _key(config: Learning, name: str) -> str:
    """Return the key that names a metric."""
    named = {metric_of(monitor): key for key, (monitor, _) in monitors(config.exp_manager).items()}
    return f"{named.get(name, CHECKPOINTS_KEY if CHECKPOINTS_KEY in named.values() else STOPPING_KEY)}.monitor"


def _some_records(data: LearningData, limit: int) -> GivenRecords:
    """Return at most `limit` of the validation records, at even distances, since files are often sorted by label."""
    total = sum(count_records(path) for path in data.validation_ds)
    count = min(limit, total)
    wanted = {place * total // count for place in range(count)}
    every = chain.from_iterable(read_records(path, data.fields) for path in data.validation_ds)
    kept = list(_at(every, wanted))
    return GivenRecords([record for _, record in kept], [place for place, _ in kept])


def _at(records: Iterator[tuple[str, dict[str, object]]], wanted: set[int]) -> Iterator[tuple[str, dict[str, object]]]:
    return (entry for number, entry in enumerate(records) if number in wanted)
