# SPDX-License-Identifier: Apache-2.0
"""The likelihood of the right answers, for metrics that need it: the loss that `nemo-launcher score` reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.prompt_encoder import SampleEncoder
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
from nemo_launcher.evaluation.figures import Chosen
from nemo_launcher.evaluation.questions import Question
from nemo_launcher.evaluation.replica_answers import ReplicaAnswers
from nemo_launcher.evaluation.scoring import score
from nemo_launcher.families.base import Base


class Likelihood(NamedTuple):
    """The likelihood of an answer; the fields are those of metrics.Answered."""

    nll_sum: float
    """Its negative log-likelihood, in nats."""
    answer_tokens: int
    """The number of its tokens."""


Likelihoods = Mapping[int, Likelihood]
"""The likelihood of the right answer, by the index of the question."""


class Answers:
    """The prompts of questions with the first of their right answers, encoded as in training."""

    def __init__(
        self,
        records: Sequence[Mapping[str, object]],
        questions: Sequence[Question],
        encoder: SampleEncoder[Sample],
    ) -> None:
        """records: those of the questions, or none. Raises UserError for answers that do not fit."""
        self._samples: dict[int, Sample] = {}
        problems: list[Problem] = []
        for place, (record, question) in enumerate(zip(records, questions, strict=bool(records))):
            field, right = question.template.answer_field, question.label.answers
            if not right:
                continue
            if field is None:
                where = f"the template of {question.task!r}"
                what = "has no answer_field, whose tokens perplexity is about"
                problems.append(Problem(where, what, "leave perplexity out"))
                break
            sample = encoder.encode({**record, field: right[0]}, question.template, question.label.where)
            if len(sample.input_ids) > encoder.max_seq_length:
                what = f"prompt and answer have {len(sample.input_ids):,} tokens, {encoder.max_seq_length:,} fit"
                problems.append(Problem(question.label.where, what, "shorten it, or leave perplexity out"))
            problems += encoder.sample_problems(sample)
            self._samples[place] = sample
        if problems:
            raise UserError(problems[:MAX_PROBLEMS])

    @classmethod
    def of(
        cls,
        base: Base,
        recipe: AdapterPrompts,
        samples: Sequence[Sample],
        questions: Sequence[Question],
        chosen: Chosen,
        *,
        nemo_compat: bool,
    ) -> Answers:
        """Return the right answers, encoded as in training, of which a metric needs the likelihood; else none."""
        encoder = base.family.prompt_encoder(
            base.tokenizer,
            base.shape,
            recipe.settings,
            encoder_seq_length=recipe.encoder_seq_length,
            nemo_compat=nemo_compat,
        )
        return cls([sample.record for sample in samples] if chosen.needs("likelihood") else [], questions, encoder)

    @property
    def samples(self) -> list[Sample]:
        """The encoded answers."""
        return list(self._samples.values())

    def likelihoods(
        self, base: Base, *, batch_size: int, kept: ReplicaAnswers[float] | None = None, key: str = ""
    ) -> Likelihoods:
        """Return the likelihood of each answer under the model as it is now. All ranks must call this.

        kept: the scores so far, with `key` (answer_keys.scores_key); None if they are not kept.
        """
        if not self._samples:
            return {}
        numbers = kept.begin(key) if kept is not None else {}
        known = {
            place: {"nll_sum": of[0], "nll_mean": of[0] / of[1], "answer_tokens": of[1]}
            for place, of in numbers.items()
            if len(of) == 2
        }

        def keep(place: int, of_answer: dict[str, float]) -> None:
            if kept is not None:
                kept.keep(place, [float(of_answer["nll_sum"]), float(of_answer["answer_tokens"])])

        scores = score(base, self.samples, batch_size=batch_size, known=known, keep=keep)
        return {
            place: Likelihood(of_answer["nll_sum"], int(of_answer["answer_tokens"]))
            for place, of_answer in zip(self._samples, scores, strict=True)
        }
