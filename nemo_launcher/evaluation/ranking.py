# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of the answer choices of records, for rank classification.

The choices of a record share its prompt, which is computed once (families' packing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch

from nemo_launcher.data.choices import choices_of
from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.prompt_encoder import SampleEncoder
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
from nemo_launcher.evaluation.figures import Chosen
from nemo_launcher.evaluation.generation import not_finite
from nemo_launcher.evaluation.questions import Question
from nemo_launcher.evaluation.replica_answers import ReplicaAnswers
from nemo_launcher.evaluation.scoring import batches_left
from nemo_launcher.families.base import Base
from nemo_launcher.families.forward import choice_scores, token_losses
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime.progress import Progress


class ChoiceScores(NamedTuple):
    """The scores of a record's choices, by their texts."""

    choice_scores: dict[str, float]
    """The log-probability of each choice (nats)."""
    choice_tokens: dict[str, int]
    """The number of tokens of each choice."""

    @classmethod
    def of(cls, texts: Sequence[str], numbers: Sequence[float]) -> ChoiceScores:
        """Return the scores whose `numbers` are these. texts: those of the choices."""
        scores, tokens = numbers[: len(texts)], map(int, numbers[len(texts) :])
        return cls(dict(zip(texts, scores, strict=True)), dict(zip(texts, tokens, strict=True)))

    def numbers(self) -> list[float]:
        """Return the log-probabilities, and then the numbers of tokens."""
        return [*self.choice_scores.values(), *map(float, self.choice_tokens.values())]


Ranked: TypeAlias = Mapping[int, ChoiceScores]
"""The scores of answer choices by the index of their question."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The questions of an evaluation whose answer choices are scored."""

    places: Sequence[int]
    """Their indices among all questions."""
    samples: Sequence[Sample]
    """Their samples, with all choices."""
    templates: Sequence[TaskTemplate]
    """Their templates."""

    @classmethod
    def of(
        cls,
        base: Base,
        recipe: AdapterPrompts,
        samples: Sequence[Sample],
        questions: Sequence[Question],
        chosen: Chosen,
    ) -> Ranking:
        """Return the questions for which a metric needs the scores of choices. Records keep a training's length limit.

        samples: those of the prompts. Raises UserError for tasks without choices, and for records that do not fit.
        """
        asking = {task: [m.name for m in metrics if m.needs == "choices"] for task, metrics in chosen.by_task.items()}
        places = [place for place, question in enumerate(questions) if asking.get(question.task)]
        without = next((i for i in places if not questions[i].template.has_choices), None)
        if without is not None:
            task = questions[without].task
            metric = asking[task][0]
            what = f"{metric} needs answer choices, but the adapter's template of {task!r} has none"
            fix = "name other metrics, or train with choices or choices_field in the template"
            raise UserError(Problem("evaluation.metrics", what, fix))
        if places and parallel.pipeline_size() > 1:
            where = "evaluation.pipeline_model_parallel_size"
            raise UserError(Problem(where, "choices are ranked by a model in one pipeline stage", f"{where}=1"))
        encoder = base.family.prompt_encoder(
            base.tokenizer,
            base.shape,
            recipe.settings,
            encoder_seq_length=recipe.encoder_seq_length,
            nemo_compat=recipe.nemo_compat,
            with_choices=True,
        )
        templates = [questions[place].template for place in places]
        encoded = _encoded(encoder, [samples[place] for place in places], templates)
        return cls(places, encoded, templates)

    def scores(
        self, base: Base, kept: ReplicaAnswers[float], key: str, *, batch_size: int, title: str
    ) -> dict[int, ChoiceScores]:
        """Return the scores of the choices, by the index of the question. All ranks must call this.

        kept: the scores so far, with `key` (answer_keys.scores_key).
        """
        if not self.places:
            return {}
        texts = [choices_of(s.record, template) for s, template in zip(self.samples, self.templates, strict=True)]
        known = {
            place: ChoiceScores.of(texts[place], numbers)
            for place, numbers in kept.begin(key).items()
            if place < len(texts) and len(numbers) == 2 * len(texts[place])
        }
        with Progress(title, len(self.places), done=len(known), unit="question") as progress:
            found = rank_choices(
                base,
                self.samples,
                self.templates,
                batch_size=batch_size,
                report=progress.advance,
                known=known,
                keep=lambda place, scores: kept.keep(place, scores.numbers()),
            )
        return dict(zip(self.places, found, strict=True))


def _encoded(
    encoder: SampleEncoder[Sample], samples: Sequence[Sample], templates: Sequence[TaskTemplate]
) -> list[Sample]:
    """Return the samples of all choices. Raises UserError with the records that do not fit."""
    found, problems = [], list[Problem]()
    for sample, template in zip(samples, templates, strict=True):
        choices = choices_of(sample.record, template)
        encoded = encoder.encode({**sample.record, str(template.answer_field): choices[0]}, template, sample.source)
        problems += encoder.sample_problems(encoded)
        length, limit = len(encoded.input_ids), encoder.max_seq_length
        if length > limit:
            what = f"has {length:,} tokens with its longest choice, more than {limit:,}"
            problems.append(Problem(sample.source, what, "shorten it, or name metrics without rank_classification"))
        found.append(encoded)
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    return found


@torch.inference_mode()
def rank_choices(
    base: Base,
    samples: Sequence[Sample],
    templates: Sequence[TaskTemplate],
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda finished: None,
    known: Mapping[int, ChoiceScores] = MappingProxyType({}),
    keep: Callable[[int, ChoiceScores], None] = lambda place, scores: None,
) -> list[ChoiceScores]:
    """Return the scores of the choices of each sample, in order, on all ranks.

    samples: with choices, and their templates. batch_size: records that run at a time; each model replica takes a share
    of these batches. report: called with the number of records finished since the last call, of this replica times the
    number of replicas. known: existing scores by sample index. keep: called with the new scores of the replica. Raises
    UserError for a score that is not finite.
    """
    share = base.family.shares_prefixes
    cut = batches_left(samples, batch_size, known, share_prefix=share)[parallel.data_rank() :: parallel.data_size()]
    dtype, found = next(base.model.parameters()).dtype, dict[int, ChoiceScores]()
    for places in cut:
        batch = base.family.pack([samples[place] for place in places], share_prefix=share).to(base.device)
        assert batch.choices is not None  # the samples have choices
        losses = token_losses(base.model, batch).double()
        owners, records = batch.label_samples, batch.choices.records.tolist()
        sums = choice_scores(losses, owners, batch.choices, normalize=False).tolist()
        counts = batch.choices.lengths.tolist()
        for index, place in enumerate(places):
            of_record = [number for number, record in enumerate(records) if record == index]
            texts = choices_of(samples[place].record, templates[place])
            pairs = list(zip(texts, of_record, strict=True))
            found[place] = ChoiceScores({t: sums[n] for t, n in pairs}, {t: counts[n] for t, n in pairs})
        wrong = [place for place in places if not all(map(math.isfinite, found[place].choice_scores.values()))]
        if wrong:
            raise UserError(not_finite([(samples[place].source, "the score of a choice") for place in wrong], dtype))
        new = [place for place in places if place not in known]
        for place in new:
            keep(place, found[place])
        report(len(new) * parallel.data_size())
    merged = {**known, **parallel.merge_replicas(found)}
    return [merged[place] for place in range(len(samples))]
